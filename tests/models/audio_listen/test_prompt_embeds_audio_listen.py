"""`prompt_embeds` with audio: a language model without audio answers from them as the audio model does."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForMultimodalLM, pipeline

from peft_listen import ListenConfig
from tests.device import test_device
from tests.small_models import make_llm, make_model


GREEDY = {"max_new_tokens": 6, "do_sample": False}
LLMS = ["llama", "gemma", "gpt2", "granite"]


@pytest.fixture(scope="module")
def processor(make_processor):
    return make_processor(sound=True)


@pytest.fixture(scope="module")
def inputs(processor, clip):
    text = ["<|audio|> What is <|audio|> said?", "the lazy dog", "<|audio|>brown"]
    clips = [clip(1.0, seed=1), clip(0.4, seed=2), clip(2.3, seed=3)]
    return processor(text=text, audio=clips, sampling_rate=16000, padding=True, padding_side="left")


def answers(model, inputs):
    """New tokens of each row. Both models never write the audio token."""
    generated = model.generate(**inputs, **GREEDY, suppress_tokens=[299])
    return generated[:, -GREEDY["max_new_tokens"] :].tolist()


@pytest.mark.parametrize("llm", LLMS)
@pytest.mark.parametrize("has_adapter", [False, True], ids=["base", "adapter"])
def test_the_language_model_generates_the_same_tokens(llm, has_adapter, inputs):
    model = make_model(llm, sound=True)
    if has_adapter:
        settings = {"pool_size": 12, "prompt_length": 3, "init_weights": False}
        model = get_peft_model(model, ListenConfig(**settings, modules_to_save=["multi_modal_projector"])).eval()
    untouched = make_llm(llm)
    for each in (model, untouched):
        each.generation_config.eos_token_id = None
    found = model.prompt_embeds(**inputs)
    length = inputs["input_ids"].shape[1] + (3 if has_adapter else 0)
    assert found["inputs_embeds"].shape[:2] == found["attention_mask"].shape == (3, length)
    expected = answers(model, inputs)
    assert answers(untouched, found) == expected
    assert len({tuple(row) for row in expected}) == 3, "the test needs different answers"


def test_the_encoders_outputs_can_be_passed_instead_of_audio(inputs):
    model = make_model(sound=True)
    audio = dict(inputs)
    text = {name: audio.pop(name) for name in ("input_ids", "attention_mask")}
    features = model.get_encoder_features(**audio)
    found = model.prompt_embeds(**text, **features._asdict())["inputs_embeds"]
    torch.testing.assert_close(found, model.prompt_embeds(**inputs)["inputs_embeds"])


def test_the_model_of_a_pipeline_has_the_prompts_of_its_adapter(make_adapted, composite_folder, processor, tmp_path):
    adapted = make_adapted("listen")
    adapted.save_pretrained(tmp_path)
    pipe = pipeline("audio-text-to-text", model=str(tmp_path), device=test_device())
    assert not isinstance(pipe.model, PeftModel)
    row = pipe.processor(text="the lazy dog")
    found = pipe.model.prompt_embeds(**row)["inputs_embeds"]
    assert found.shape[1] == row["input_ids"].shape[1] + 3
    torch.testing.assert_close(found, adapted.prompt_embeds(**row)["inputs_embeds"])
    base = AutoModelForMultimodalLM.from_pretrained(composite_folder)
    torch.testing.assert_close(found[:, 3:], base.prompt_embeds(**row)["inputs_embeds"])


def test_lora_on_the_language_model_is_refused_and_on_the_encoder_is_not(inputs):
    model = get_peft_model(make_model(sound=True), LoraConfig(target_modules=r".*language_model.*q_proj"))
    with pytest.raises(ValueError, match="trained parts beside the prompts"):
        model.prompt_embeds(**inputs)
    model = get_peft_model(make_model(sound=True), LoraConfig(target_modules=r".*speech_tower.*q_proj"))
    assert torch.isfinite(model.prompt_embeds(**inputs)["inputs_embeds"]).all()


def test_invalid_inputs_are_explained(inputs):
    model = make_model(sound=True)
    with pytest.raises(ValueError, match="Exactly one of `input_ids` and `inputs_embeds`"):
        model.prompt_embeds()
    with pytest.raises(ValueError, match="audio token"):
        model.prompt_embeds(input_ids=inputs["input_ids"])
