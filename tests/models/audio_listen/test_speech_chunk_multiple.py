"""Short clips are encoded as the least multiple of `speech_chunk_multiple` seconds that holds their windows."""

import copy
import json
import threading

import accelerate
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import get_peft_model
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import WhisperFeatureExtractor, pipeline
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from peft_listen import AudioListenConfig, AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.models.audio_listen.whisper_length import with_length
from tests.small_models import SAMPLING_RATE


# Rounding differs with the size of the batch, and with the kernels of the CPU.
TOLERANCE = {"atol": 5e-5, "rtol": 0}
SECONDS = (0.9, 31.5, 0.05, 7.3, 4.9, 2.0)


def audio_of(inputs) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in inputs.items() if name not in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def clips(clip):
    return [clip(seconds, seed) for seed, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="module")
def build(make_model, make_processor):
    """A model and its processor with one `speech_chunk_multiple`."""

    def build(multiple=5, sound=False, **kwargs):
        setting = {} if multiple is None else {"speech_chunk_multiple": multiple}
        return make_model(sound=sound, **setting, **kwargs), make_processor(sound=sound, **setting)

    return build


@pytest.fixture(scope="module")
def encode_by_hand():
    """Encodes a clip by a Whisper encoder that was built for so many seconds, with the first of the model's positions."""

    def encode(model, waveform, seconds, **kwargs):
        tower = model.model.speech_tower
        config = copy.deepcopy(tower.config)
        config.max_source_positions = 50 * seconds
        encoder = WhisperEncoder(config).eval()
        weights = tower.state_dict()
        weights["embed_positions.weight"] = weights["embed_positions.weight"][: 50 * seconds]
        encoder.load_state_dict(weights)
        extractor = WhisperFeatureExtractor(chunk_length=seconds)
        features = extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").input_features
        return encoder(features, **kwargs)

    return encode


def compile_in_place(tower):
    tower.compile(backend="eager")
    return tower


@pytest.mark.parametrize(
    "compiled", [lambda tower: torch.compile(tower, backend="eager"), compile_in_place], ids=["wrapped", "in place"]
)
def test_a_compiled_encoder_is_shortened(build, compiled):
    tower = build()[0].model.speech_tower
    mel = torch.randn(1, tower.config.num_mel_bins, 200)
    with torch.no_grad():
        expected = with_length(tower, 100)(mel).last_hidden_state
        shortened = with_length(compiled(copy.copy(tower)), 100)
        torch.testing.assert_close(shortened(mel).last_hidden_state, expected, **TOLERANCE)
    assert expected.shape[1] == 100 and shortened.config.max_source_positions == 100


# Windows of 17 frames reach 255 frames (5.1 s) if there is audio after frame 238 (4.76 s).
LENGTHS = [
    (5, 0.02, 5),
    (5, 3.0, 5),
    (5, 4.76, 5),
    (5, 4.78, 10),
    (5, 5.1, 10),
    (5, 11.0, 15),
    (5, 29.0, 30),
    (5, 30.0, 30),
    (1, 0.3, 1),
    (1, 0.4, 1),
    (1, 1.01, 2),
    (7, 6.0, 7),
    (7, 20.0, 21),
    (7, 28.0, 30),
    (30, 0.3, 30),
    (None, 0.3, 30),
]


@torch.no_grad()
@pytest.mark.parametrize(("multiple", "seconds", "encoded"), LENGTHS)
def test_a_clip_is_encoded_as_the_least_multiple_that_holds_its_windows(
    build, clip, encode_by_hand, multiple, seconds, encoded
):
    model, processor = build(multiple)
    waveform = clip(seconds)
    inputs = processor(audio=[waveform], sampling_rate=SAMPLING_RATE)
    assert inputs["input_features"].shape == (1, 80, 100 * encoded)
    assert inputs["input_features_mask"].shape == (1, 100 * encoded)
    features = model.get_encoder_features(**inputs)
    expected = encode_by_hand(model, waveform, encoded).last_hidden_state
    num_frames = features.speech_features.shape[1]
    assert num_frames == processor.num_frames_needed(features.audio_features_mask.sum(-1)) <= 50 * encoded
    torch.testing.assert_close(features.speech_features, expected[:, :num_frames], **TOLERANCE)
    tower = model.model.speech_tower
    assert tower.config.max_source_positions == tower.embed_positions.num_embeddings == 1500


@torch.no_grad()
@pytest.mark.parametrize("sound", [False, True])
def test_30_seconds_are_whispers_own_form(build, clips, sound):
    (model, processor), (explicit, explicit_processor) = build(None, sound), build(30, sound)
    inputs = processor(text="<|audio|>" * len(clips), audio=clips, sampling_rate=SAMPLING_RATE)
    same = explicit_processor(text="<|audio|>" * len(clips), audio=clips, sampling_rate=SAMPLING_RATE)
    assert all(torch.equal(inputs[name], same[name]) for name in inputs)
    assert torch.equal(model(**inputs).logits, explicit(**same).logits)
    assert inputs["input_features"].shape == (7, 80, 3000)
    chunks = [chunk for waveform in clips for chunk in (waveform[:480000], waveform[480000:]) if len(chunk)]
    extracted = processor.feature_extractor(
        chunks, sampling_rate=SAMPLING_RATE, return_attention_mask=True, return_tensors="pt"
    )
    assert torch.equal(inputs["input_features"], extracted["input_features"])
    assert torch.equal(inputs["input_features_mask"], extracted["attention_mask"])
    expected = model.model.speech_tower(inputs["input_features"]).last_hidden_state
    features = model.get_encoder_features(**audio_of(inputs)).speech_features
    torch.testing.assert_close(features, expected[:, : features.shape[1]], **TOLERANCE)


@pytest.mark.parametrize("windows", [{}, {"window_length": 20, "window_stride": 10, "num_queries": 2}])
@pytest.mark.parametrize("multiple", [1, 5, 7, 29])
def test_the_number_of_audio_tokens_is_that_of_30_seconds(make_processor, clip, multiple, windows):
    waveforms = [clip(seconds) for seconds in (0.01, 0.34, 0.35, 1.0, 4.76, 4.78, 5.0, 14.99, 29.9, 30.0, 30.1, 61.0)]
    text = "<|audio|>" * len(waveforms)
    ids = [
        make_processor(speech_chunk_multiple=value, **windows)(text=text, audio=waveforms, sampling_rate=SAMPLING_RATE)
        for value in (multiple, 30)
    ]
    assert torch.equal(ids[0]["input_ids"], ids[1]["input_ids"])


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [2, 8])
@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize("multiple", [1, 5, 7])
def test_a_clip_gives_the_same_in_a_batch_and_alone(build, clips, multiple, sound, batch_size):
    model, processor = build(multiple, sound, encoder_batch_size=batch_size)
    prompts = [
        "<|audio|> What is said?",
        "the<|audio|>quick<|audio|>fox",
        "no recording",
        "<|audio|><|audio|>",
        "a<|audio|>",
    ]
    rows = [clips[:1], clips[1:3], [], clips[3:5], clips[5:]]
    batch = processor(text=prompts, audio=rows, sampling_rate=SAMPLING_RATE)
    output = model(**batch)
    features = model.get_encoder_features(**audio_of(batch))
    chunk = 0
    for row, (prompt, row_clips) in enumerate(zip(prompts, rows, strict=True)):
        alone = processor(text=prompt, audio=row_clips or None, sampling_rate=SAMPLING_RATE)
        length = alone["input_ids"].shape[1]
        torch.testing.assert_close(output.logits[row, -length:], model(**alone).logits[0], **TOLERANCE)
        if row_clips:
            expected = model.get_encoder_features(**audio_of(alone))
            count, frames = expected.speech_features.shape[:2]
            own = features.speech_features[chunk : chunk + count, :frames]
            torch.testing.assert_close(
                own * expected.audio_features_mask[..., None], _real_frames(expected), **TOLERANCE
            )
            chunk += count
    assert chunk == len(features.speech_features)
    cached = model(batch["input_ids"], attention_mask=batch["attention_mask"], **features._asdict())
    torch.testing.assert_close(cached.logits, output.logits, **TOLERANCE)


def _real_frames(features):
    return features.speech_features * features.audio_features_mask[..., None]


@torch.no_grad()
@pytest.mark.parametrize("wider", [10, 30])
def test_a_processor_may_pad_to_more_than_the_model_encodes(build, make_processor, clips, wider):
    model, processor = build(5)
    waveforms = [waveform[:-100] for waveform in clips if len(waveform) < 4 * SAMPLING_RATE]
    own = processor(audio=waveforms, sampling_rate=SAMPLING_RATE)
    padded = make_processor(speech_chunk_multiple=wider)(audio=waveforms, sampling_rate=SAMPLING_RATE)
    assert (own["input_features"].shape[-1], padded["input_features"].shape[-1]) == (500, 100 * wider)
    torch.testing.assert_close(
        model.get_audio_features(**padded).pooler_output, model.get_audio_features(**own).pooler_output, **TOLERANCE
    )


@torch.no_grad()
def test_hidden_states_and_attentions_are_padded_and_in_the_order_of_the_chunks(build, clip, encode_by_hand):
    model, processor = build(1)
    model.set_attn_implementation("eager")
    waveforms = [clip(0.6, 1), clip(1.5, 2), clip(0.2, 3)]
    inputs = processor(audio=waveforms, sampling_rate=SAMPLING_RATE)
    for _ in range(2):  # the hooks that record them are installed once
        output = model.get_audio_features(**inputs, output_hidden_states=True, output_attentions=True)
    assert [tuple(layer.shape) for layer in output.hidden_states] == [(3, 100, 16)] * 2
    assert [tuple(layer.shape) for layer in output.attentions] == [(3, 2, 100, 100)]
    for index, (waveform, seconds) in enumerate(zip(waveforms, (1, 2, 1), strict=True)):
        alone = encode_by_hand(model, waveform, seconds, output_hidden_states=True, output_attentions=True)
        frames = 50 * seconds
        for layer, expected in zip(output.hidden_states, alone.hidden_states, strict=True):
            torch.testing.assert_close(layer[index, :frames], expected[0], **TOLERANCE)
            assert not layer[index, frames:].any()
        torch.testing.assert_close(
            output.attentions[0][index, :, :frames, :frames], alone.attentions[0][0], **TOLERANCE
        )
        assert (
            not output.attentions[0][index, :, frames:].any() and not output.attentions[0][index, ..., frames:].any()
        )


def test_an_encoder_that_is_not_frozen_gets_the_gradients_of_its_length(build, clip, encode_by_hand):
    model, processor = build(5)
    waveform = clip(1.0)
    tower = model.model.speech_tower
    tower.requires_grad_(True)
    model.train()
    model.get_encoder_features(
        **processor(audio=[waveform], sampling_rate=SAMPLING_RATE)
    ).speech_features.sum().backward()
    gradients = {name: weight.grad.clone() for name, weight in tower.named_parameters()}
    assert not gradients["embed_positions.weight"][250:].any()

    reference = copy.deepcopy(tower)
    reference.config.max_source_positions = 250
    reference.embed_positions = nn.Embedding.from_pretrained(tower.embed_positions.weight[:250].detach(), freeze=False)
    reference.zero_grad()
    inputs = processor(audio=[waveform], sampling_rate=SAMPLING_RATE)["input_features"]
    num_frames = processor.num_frames_needed(torch.tensor([50]))
    reference(inputs).last_hidden_state[:, :num_frames].sum().backward()
    for name, weight in reference.named_parameters():
        gradient = gradients[name][:250] if name == "embed_positions.weight" else gradients[name]
        torch.testing.assert_close(gradient, weight.grad, atol=1e-5, rtol=1e-4, msg=name)


def test_an_encoder_that_peft_trains_is_encoded_at_the_same_length(build, clip):
    model, processor = build(5)
    inputs = processor(text="<|audio|>What?", audio=[clip(1.0)], sampling_rate=SAMPLING_RATE)
    expected = model(**inputs).logits
    config = ListenConfig(pool_size=4, prompt_length=2, modules_to_save=["speech_tower"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    with adapted.disable_adapter(), torch.no_grad():
        torch.testing.assert_close(adapted(**inputs).logits, expected, **TOLERANCE)
    adapted.train()
    adapted(**inputs, labels=inputs["input_ids"]).loss.backward()
    trained = {name for name, weight in adapted.named_parameters() if weight.grad is not None and weight.grad.any()}
    assert any("speech_tower.modules_to_save.default.conv1" in name for name in trained)
    assert not any("original_module" in name for name in trained)


@torch.no_grad()
@pytest.mark.parametrize("place", ["cpu", "disk"])
def test_an_encoder_on_a_device_map_is_encoded_at_the_same_length(build, clip, tmp_path, place):
    model, processor = build(5)
    inputs = processor(text="<|audio|>What?", audio=[clip(1.0)], sampling_rate=SAMPLING_RATE)
    expected = model(**inputs).logits
    device_map = {"model.speech_tower": place, "model.multi_modal_projector": "cpu", "model.language_model": "cpu"}
    model = accelerate.dispatch_model(
        model, {**device_map, "lm_head": "cpu"}, main_device="cpu", offload_dir=tmp_path, force_hooks=True
    )
    assert "forward" in vars(model.model.speech_tower)
    assert (model.model.speech_tower.conv1.weight.device.type == "meta") == (place == "disk")
    torch.testing.assert_close(model(**inputs).logits, expected, **TOLERANCE)


@torch.no_grad()
def test_hooks_of_the_encoder_run(build, clip):
    model, processor = build(5)
    shapes = []
    model.model.speech_tower.register_forward_hook(lambda module, args, output: shapes.append(tuple(args[0].shape)))
    model.get_encoder_features(**processor(audio=[clip(1.0), clip(6.0)], sampling_rate=SAMPLING_RATE))
    assert sorted(shapes) == [(1, 80, 500), (1, 80, 1000)]


@torch.no_grad()
def test_threads_encode_at_different_lengths(build, clip):
    model, processor = build(1)
    inputs = [processor(audio=[clip(seconds)], sampling_rate=SAMPLING_RATE) for seconds in (0.5, 1.5, 2.5, 3.5)]
    expected = [model.get_audio_features(**each).pooler_output for each in inputs]
    results = [[] for _ in inputs]

    def run(index):
        with torch.no_grad():
            for _ in range(20):
                results[index].append(model.get_audio_features(**inputs[index]).pooler_output)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for outputs, output in zip(results, expected, strict=True):
        assert len(outputs) == 20
        assert all(torch.equal(other, output) for other in outputs)


class ReadCounter(TorchFunctionMode):
    """Counts calls that wait for the device on which the tensor is."""

    READS = ("tolist", "cpu", "item", "__int__", "__float__", "__bool__", "__index__", "nonzero")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        is_copied_index = name == "__getitem__" and any(isinstance(part, list) for part in _as_tuple(args[1]))
        self.count += name in self.READS or is_copied_index
        return func(*args, **(kwargs or {}))


def _as_tuple(index):
    return index if isinstance(index, tuple) else (index,)


@torch.no_grad()
def test_lengths_are_read_from_the_device_once_for_all_chunks(build, clips):
    model, processor = build(5, encoder_batch_size=1)
    counts = []
    for waveforms in (clips[:1], clips):
        inputs = processor(audio=waveforms, sampling_rate=SAMPLING_RATE)
        with ReadCounter() as counter:
            model.get_encoder_features(**inputs)
        counts.append(counter.count)
    assert counts[0] == counts[1] > 0
    with ReadCounter() as counter:
        torch.ones(2)[[0, 1]].tolist()
    assert counter.count == 2


@torch.no_grad()
def test_the_setting_is_saved_and_may_be_changed_when_loading(build, clip, tmp_path):
    model, processor = build(5)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    waveform = clip(1.0)
    for changes, width in (({}, 500), ({"speech_chunk_multiple": 2}, 200), ({"speech_chunk_multiple": 30}, 3000)):
        loaded = AudioListenForCausalLM.from_pretrained(tmp_path, **changes)
        loaded_processor = AudioListenProcessor.from_pretrained(tmp_path, **changes)
        inputs = loaded_processor(text="<|audio|>What?", audio=[waveform], sampling_rate=SAMPLING_RATE)
        assert inputs["input_features"].shape[-1] == width
        other, other_processor = build(width // 100)
        expected = other_processor(text="<|audio|>What?", audio=[waveform], sampling_rate=SAMPLING_RATE)
        torch.testing.assert_close(loaded(**inputs).logits, other(**expected).logits)


def test_composites_that_were_saved_without_the_setting_encode_30_seconds(build, tmp_path):
    model, processor = build(None)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json"):
        items = json.loads((tmp_path / name).read_text())
        assert items.pop("speech_chunk_multiple") == 30
        (tmp_path / name).write_text(json.dumps(items))
    assert AudioListenForCausalLM.from_pretrained(tmp_path).config.speech_chunk_multiple == 30
    assert AudioListenProcessor.from_pretrained(tmp_path).speech_chunk_multiple == 30


@torch.no_grad()
def test_generation_and_pipeline_use_the_setting(build, clips, tmp_path):
    model, processor = build(5)
    prompts = ["<|audio|>What?"] * len(clips)
    batch = processor(text=prompts, audio=clips, sampling_rate=SAMPLING_RATE)
    options = {"max_new_tokens": 4, "do_sample": False}
    generated = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, waveform in enumerate(clips):
        alone = processor(text=prompts[0], audio=[waveform], sampling_rate=SAMPLING_RATE)
        expected = model.generate(**alone, **options)[0, alone["input_ids"].shape[1] :]
        assert generated[row, : len(expected)].tolist() == expected.tolist()

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    pipe = pipeline("audio-text-to-text", model=str(tmp_path))
    widths = []
    pipe.model.model.speech_tower.register_forward_hook(lambda module, args, output: widths.append(args[0].shape[-1]))
    pipe(
        [{"audio": clips[0], "text": "What?"}, {"audio": clips[3], "text": "What?"}],
        sampling_rate=SAMPLING_RATE,
        **options,
    )
    assert sorted(widths) == [500, 1000]


INVALID = [0, -5, 31, 2.5, True, "5", None, float("nan")]


@pytest.mark.parametrize("value", INVALID)
def test_values_that_are_not_whole_seconds_from_1_to_30_are_refused(make_processor, value):
    message = "`speech_chunk_multiple` must be an integer from 1 to 30"
    with pytest.raises(ValueError, match=message):
        make_processor(speech_chunk_multiple=value)
    with pytest.raises((ValueError, StrictDataclassFieldValidationError), match="speech_chunk_multiple"):
        AudioListenConfig(speech_chunk_multiple=value)
    with pytest.raises(ValueError, match=message):
        make_processor().check_config({"speech_chunk_multiple": value})


def test_a_processor_that_pads_to_less_than_the_model_encodes_is_refused(build, make_processor, clip, tmp_path):
    model, _ = build(10)
    short = make_processor(speech_chunk_multiple=5)
    with pytest.raises(
        ValueError, match="its `speech_chunk_multiple` is 5 s, which is not a multiple of the model's 10 s"
    ):
        short.check_config(model.config)
    for fitting in (10, 20, 30):
        make_processor(speech_chunk_multiple=fitting).check_config(model.config)
    with pytest.raises(
        ValueError, match=r"\(1, 80, 500\).*\(chunks, 80, 3000\), or fewer frames in multiples of 1000"
    ):
        model.get_audio_features(**short(audio=[clip(1.0)], sampling_rate=SAMPLING_RATE))
    model.save_pretrained(tmp_path)
    short.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a multiple of the model's 10 s"):
        AudioListenProcessor.from_pretrained(tmp_path)


def test_features_that_end_before_the_windows_are_refused(build, clip):
    model, processor = build(5)
    inputs = processor(audio=[clip(1.0)], sampling_rate=SAMPLING_RATE)
    with pytest.raises(ValueError, match="has 500 mel frames, but the windows of a chunk need 1000"):
        model.get_audio_features(inputs["input_features"])
    with pytest.raises(ValueError, match=r"\(1, 80, 400\), .* multiples of 500"):
        model.get_audio_features(inputs["input_features"][..., :400])
    with pytest.raises(ValueError, match=r"\(1, 40, 500\)"):
        model.get_audio_features(inputs["input_features"][:, :40])
