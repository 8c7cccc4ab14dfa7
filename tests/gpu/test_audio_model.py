"""The audio model, its encoders, features and pipeline on the device, compared with the CPU."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForMultimodalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM, pipeline

from peft_listen import AudioListenForCausalLM, BeatsFeatureExtractor, BeatsModel, ListenConfig
from peft_listen.training import FeatureCache
from tests.small_models import (
    IDS,
    QFORMER,
    SIZES,
    VOCAB_SIZE,
    make_chat_model,
    make_chat_processor,
    make_clip,
    make_model,
    make_processor,
    make_tokenizer,
)


pytestmark = pytest.mark.gpu

CLOSE = {"atol": 1e-3, "rtol": 1e-3}
BEATS_CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "beats" / "iter3plus.pt"
GREEDY = {"max_new_tokens": 5, "do_sample": False}
PROJECTOR = ["multi_modal_projector"]


@pytest.fixture
def inputs():
    text = ["<|audio|> What is said?", "the<|audio|>fox"]
    return make_processor(sound=True)(text=text, audio=[make_clip(1.0, 1), make_clip(0.4, 2)], sampling_rate=16000)


@pytest.fixture
def adapted():
    model = make_model(sound=True)
    model.generation_config.eos_token_id = None
    # With this seed the scores of the selected prompts differ by 0.03 or more, so that rounding does not change their order.
    settings = {"pool_size": 12, "prompt_length": 3, "init_weights": False, "seed": 9, "modules_to_save": PROJECTOR}
    return get_peft_model(model, ListenConfig(**settings)).eval()


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [
        GREEDY,
        {**GREEDY, "num_beams": 2},
        {**GREEDY, "cache_implementation": "static", "disable_compile": True},
        {**GREEDY, "prefill_chunk_size": 8},
    ],
    ids=["greedy", "beams", "static", "chunks"],
)
def test_logits_and_tokens_are_those_of_the_cpu(settings, adapted, inputs, device):
    expected, expected_tokens = adapted(**inputs).logits, adapted.generate(**inputs, **settings)
    on_device = inputs.to(device)
    adapted.to(device)
    torch.testing.assert_close(adapted(**on_device).logits.cpu(), expected, **CLOSE)
    assert torch.equal(adapted.generate(**on_device, **settings).cpu(), expected_tokens)


@torch.no_grad()
def test_short_clips_of_different_length_give_the_features_of_the_cpu(device):
    model = make_model(sound=True, speech_chunk_multiple=2)
    clips = [make_clip(seconds, seed) for seed, seconds in enumerate((1.0, 31.0, 3.0, 0.4))]
    inputs = make_processor(sound=True, speech_chunk_multiple=2)(audio=clips, sampling_rate=16000)
    expected = model.get_encoder_features(**inputs)
    features = model.to(device).get_encoder_features(**inputs.to(device))
    for own, cpu in zip(features, expected, strict=True):
        torch.testing.assert_close(own.cpu(), cpu, **CLOSE)


@torch.no_grad()
def test_bfloat16_adds_no_more_error_with_the_adapter(adapted, inputs, device):
    def logits():
        """With the adapter, and without it."""
        yield adapted(**inputs).logits
        with adapted.disable_adapter():
            yield adapted(**inputs).logits

    exact = list(logits())
    inputs = inputs.to(device, torch.bfloat16)
    adapted.to(device, torch.bfloat16)
    error, base_error = (
        float((found.float().cpu() - expected).abs().mean()) for found, expected in zip(logits(), exact, strict=True)
    )
    assert error <= 1.5 * base_error


def test_device_map_places_the_adapter_with_the_model(composite_folder, make_adapted, clip, tmp_path, device):
    make_adapted("listen").save_pretrained(tmp_path)
    batch = make_processor()(text=["<|audio|> What is said?"], audio=[clip(0.6)], sampling_rate=16000)
    results = []
    for placement in ({"": "cpu"}, "auto" if device.type == "cuda" else {"": str(device)}):
        model = AutoModelForMultimodalLM.from_pretrained(composite_folder, device_map=placement)
        model.load_adapter(str(tmp_path))
        model.generation_config.eos_token_id = None
        results.append(model.generate(**batch.to(model.device), **GREEDY).cpu())
    assert model.device.type == device.type
    assert torch.equal(results[1], results[0])


@pytest.mark.parametrize("placement", [{"device": None}, {"device": 0}, {"device_map": "auto"}], ids=str)
def test_pipeline(placement, composite_folder, pipe, clips, device):
    if placement == {"device": None}:
        placement = {"device": device}
    elif device.type != "cuda":
        pytest.skip("needs a device that transformers finds itself")
    on_device = pipeline("audio-text-to-text", model=str(composite_folder), max_new_tokens=6, **placement)
    assert on_device.model.device.type == device.type
    assert on_device(clips, text="What?", batch_size=2) == pipe(clips, text="What?", batch_size=2)


def test_cached_features_are_those_of_the_cpu(clips, device, tmp_path):
    model, processor = make_chat_model().eval(), make_chat_processor()
    expected = FeatureCache(tmp_path / "cpu", model)
    expected.build(model, processor, clips)
    model.to(device)
    cache = FeatureCache(tmp_path / "device", model)
    assert cache.folder.name == expected.folder.name  # the fingerprint does not depend on the device
    cache.build(model, processor, clips)
    for clip in clips:
        torch.testing.assert_close(cache[clip], expected[clip], **CLOSE)


@torch.no_grad()
def test_beats_and_its_filter_bank_are_those_of_the_cpu(device):
    waveforms = [make_clip(2.3, 1), make_clip(0.7, 2)]
    extractor, model = BeatsFeatureExtractor(), BeatsModel.from_original_checkpoint(BEATS_CHECKPOINT)
    options = {"sampling_rate": 16000, "return_tensors": "pt"}
    expected = extractor(waveforms, **options)
    found = extractor(waveforms, **options, device=device)
    torch.testing.assert_close(found["input_values"], expected["input_values"], atol=2e-3, rtol=0)
    hidden_states = model(**expected).last_hidden_state
    on_device = model.to(device)(**expected.to(device)).last_hidden_state
    torch.testing.assert_close(on_device.cpu(), hidden_states, atol=2e-4, rtol=0)


def test_an_adapter_trains_on_a_language_model_in_4_bit(needs_cuda, published_parts, device, tmp_path):
    pytest.importorskip("bitsandbytes")
    # bitsandbytes quantizes blocks of 64 weights, which must not be longer than a row.
    sizes = {**SIZES, "hidden_size": 128, "intermediate_size": 128}
    LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB_SIZE, **sizes, **IDS)).save_pretrained(tmp_path / "llm")
    make_tokenizer().save_pretrained(tmp_path / "llm")
    parts = {**published_parts, "llm": tmp_path / "llm"}
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    torch.manual_seed(0)
    base = AudioListenForCausalLM.from_sub_models_pretrained(
        **parts,
        qformer_config=QFORMER,
        llm_kwargs={"quantization_config": config, "device_map": {"": str(device)}},
    ).to(device)
    torch.manual_seed(0)
    whole = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER).to(device)
    # Loading to the device may draw other random numbers before the projector is initialized.
    projector = base.model.multi_modal_projector.state_dict()
    whole.model.multi_modal_projector.load_state_dict(projector)
    text = ["<|audio|> What is said?", "the<|audio|>fox"]
    batch = make_processor(sound=True)(text=text, audio=[make_clip(1.0, 1), make_clip(0.4, 2)], sampling_rate=16000)
    batch = batch.to(device)
    with torch.no_grad():
        logits, expected = base(**batch).logits, whole(**batch).logits
    assert 0 < (logits - expected).abs().mean() < 0.2 * expected.std()
    model = get_peft_model(base, ListenConfig(pool_size=8, prompt_length=3, modules_to_save=PROJECTOR)).train()
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        model.begin_step(0)
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert model.eval().generate(**batch, **GREEDY).shape[0] == 2
