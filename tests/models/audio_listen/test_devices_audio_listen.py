"""
The audio model leaves no tensor on the CPU: on the device of `tests/simulated_device.py` it runs, and gives the results of the
CPU. The tests marked `gpu` repeat this on a GPU.
"""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForMultimodalLM, pipeline

from peft_listen import BeatsFeatureExtractor, BeatsModel, ListenConfig
from peft_listen.models.audio_listen import modeling_audio_listen, modeling_window_qformer
from peft_listen.models.beats import modeling_beats
from peft_listen.training import AudioListenCollator, FeatureCache
from tests.simulated_device import SIMULATED, TorchWithoutDevices
from tests.small_models import make_chat_model, make_chat_processor, make_clip, make_model, make_processor


pytestmark = [
    pytest.mark.usefixtures("simulated"),
    pytest.mark.cpu_only("it compares the CPU with the simulated device"),
]

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
GREEDY = {"max_new_tokens": 3, "do_sample": False}
BEATS_CHECKPOINT = Path(__file__).parents[2] / "fixtures" / "beats" / "iter3plus.pt"
DEVICES = ("cpu", SIMULATED)


@pytest.fixture(scope="module")
def inputs():
    text = ["<|audio|> What is said?", "the<|audio|>fox"]
    processor = make_processor(sound=True, speech_chunk_multiple=2)
    return processor(text=text, audio=[make_clip(1.0, 1), make_clip(2.4, 2)], sampling_rate=16000)


@pytest.fixture
def make():
    """The audio model, of short chunks that are encoded in two batches, with an adapter on a device."""

    def make(device):
        model = make_model(sound=True, speech_chunk_multiple=2)
        model.generation_config.eos_token_id = None
        settings = {"pool_size": 12, "prompt_length": 3, "init_weights": False, "seed": 9}
        config = ListenConfig(**settings, modules_to_save=["multi_modal_projector"])
        return get_peft_model(model, config).eval().to(device)

    return make


def on(device, batch):
    return {name: tensor.to(device) for name, tensor in batch.items()}


@torch.no_grad()
def test_logits_and_tokens_are_those_of_the_cpu(make, inputs):
    results = []
    for device in DEVICES:
        model, batch = make(device), on(device, inputs)
        features = model.get_base_model().get_encoder_features(
            **{name: batch[name] for name in batch if name not in ("input_ids", "attention_mask")}
        )
        text = {name: batch[name] for name in ("input_ids", "attention_mask")}
        results.append(
            [
                model(**batch).logits.cpu(),
                model(**text, **features._asdict()).logits.cpu(),
                model.generate(**batch, **GREEDY, num_beams=2).cpu(),
                model.generate(**batch, **GREEDY, cache_implementation="static", disable_compile=True).cpu(),
            ]
        )
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def test_gradients_are_those_of_the_cpu(make, inputs):
    results = []
    for device in DEVICES:
        model, batch = make(device).train(), on(device, inputs)
        model.begin_step(0)
        labels = batch["input_ids"].clone()
        labels[:, :-2] = -100
        model(**batch, labels=labels).loss.backward()
        gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
        assert {gradient.device for gradient in gradients} == {torch.device(device)}
        results.append([gradient.cpu() for gradient in gradients])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


def test_generate_moves_audio_to_the_model(make, inputs):
    text = on(SIMULATED, {name: inputs[name] for name in ("input_ids", "attention_mask")})
    tokens = make(SIMULATED).generate(**{**inputs, **text}, **GREEDY)
    assert torch.equal(tokens.cpu(), make("cpu").generate(**inputs, **GREEDY))


@torch.no_grad()
def test_beats_and_its_filter_bank_are_those_of_the_cpu():
    clips, results = [make_clip(0.8, 1), make_clip(0.5, 2)], []
    for device in DEVICES:
        model = BeatsModel.from_original_checkpoint(BEATS_CHECKPOINT).to(device)
        batch = BeatsFeatureExtractor()(clips, sampling_rate=16000, return_tensors="pt", device=device)
        results.append([batch["input_values"], model(**batch.to(device)).last_hidden_state.cpu()])
    torch.testing.assert_close(results[1], results[0], **CLOSE)


@pytest.mark.parametrize("group_sound_by_length", [True, False])
def test_a_default_device_of_torch_does_not_change_the_features(group_sound_by_length, examples, tmp_path):
    processor = make_chat_processor(group_sound_by_length=group_sound_by_length)
    model, clips, batches = make_chat_model(), [example["audio"] for example in examples[:2]], []
    for device in DEVICES:
        with torch.device(device):
            cache = FeatureCache(tmp_path / device, model)
            cache.build(model, processor, clips)
            collators = [AudioListenCollator(processor), AudioListenCollator(processor, feature_cache=cache)]
            batches.append([collator(examples[:2]) for collator in collators])
    tensors = [value for batch in batches[1] for value in batch.values() if torch.is_tensor(value)]
    assert {tensor.device.type for tensor in tensors} == {"cpu"}
    torch.testing.assert_close(batches[1], batches[0])


def test_the_pipeline_moves_its_inputs(composite_folder, pipe, clips):
    options = {"text": "What?", "batch_size": 2}
    on_device = pipeline("audio-text-to-text", model=str(composite_folder), device=SIMULATED, max_new_tokens=6)
    assert on_device.model.device == torch.device(SIMULATED)
    assert on_device(clips[:2], **options) == pipe(clips[:2], **options)


def test_a_device_map_places_adapter_and_model(composite_folder, make_adapted, tmp_path):
    make_adapted("listen").save_pretrained(tmp_path)
    model = AutoModelForMultimodalLM.from_pretrained(composite_folder, device_map={"": SIMULATED})
    model.load_adapter(str(tmp_path))
    assert {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {torch.device(SIMULATED)}


def test_cached_features_are_those_of_the_cpu(clips, tmp_path):
    caches = []
    for number, device in enumerate(DEVICES):
        model = make_model(sound=True).to(device)
        cache = FeatureCache(tmp_path / str(number), model)
        cache.build(model, make_processor(sound=True), clips[:2])
        caches.append(cache)
    assert caches[1].folder.name == caches[0].folder.name
    for clip in clips[:2]:
        torch.testing.assert_close(caches[1][clip], caches[0][clip], **CLOSE)


@pytest.mark.parametrize(
    "module",
    [modeling_audio_listen, modeling_window_qformer, modeling_beats],
    ids=lambda module: module.__name__.rpartition(".")[2],
)
def test_a_module_that_makes_its_tensors_on_the_cpu_is_found(module, make, inputs, monkeypatch):
    model = make(SIMULATED)
    monkeypatch.setattr(module, "torch", TorchWithoutDevices())
    with pytest.raises(RuntimeError, match="on the same device.* on cpu"):
        model(**on(SIMULATED, inputs))
