"""LiSTEN and LoRA on one model: both are trained, saved by one call and loaded by one call."""

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model

from peft_listen import ListenConfig, add_lora, load_with_lora
from peft_listen.pipelines.loading import load_pipeline
from tests import small_models


LORA = {"target_modules": r".*(language_model|model)\..*q_proj", "init_lora_weights": False}


def adapted(base, adapter_name="default", **settings):
    config = ListenConfig(pool_size=6, prompt_length=2, init_weights=False, **settings)
    return add_lora(get_peft_model(base, config, adapter_name=adapter_name), LoraConfig(**LORA))


def logits_of(model):
    torch.manual_seed(0)
    with torch.no_grad():
        return model(input_ids=torch.randint(3, 200, (2, 7))).logits


@pytest.mark.parametrize("adapter_name", ["default", "prompts"])
def test_one_call_saves_both_and_one_call_loads_both(tmp_path, adapter_name):
    model = adapted(small_models.make_llm("llama"), adapter_name).eval()
    model.save_pretrained(tmp_path)
    loaded = load_with_lora(small_models.make_llm("llama"), tmp_path)
    assert set(loaded.peft_config) == {adapter_name, "lora"} and not loaded.training
    torch.testing.assert_close(logits_of(loaded), logits_of(model))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    folder = tmp_path if adapter_name == "default" else tmp_path / adapter_name
    listen = PeftModel.from_pretrained(small_models.make_llm("llama"), str(folder)).eval()
    assert not torch.allclose(logits_of(listen), logits_of(model))  # LoRA is active too
    assert not torch.allclose(logits_of(small_models.make_llm("llama")), logits_of(listen))


@pytest.mark.parametrize("is_loaded", [False, True])
def test_both_are_trained(tmp_path, is_loaded):
    model = adapted(small_models.make_llm("llama"))
    if is_loaded:
        model.save_pretrained(tmp_path)
        model = load_with_lora(small_models.make_llm("llama"), tmp_path, is_trainable=True)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"listen_" in name or "lora_" in name for name in trained} == {True}
    assert any("lora_A" in name for name in trained) and any("values" in name for name in trained)
    ids = torch.randint(3, 200, (2, 7), generator=torch.Generator().manual_seed(0))
    model(input_ids=ids, labels=torch.where(torch.arange(7) < 4, -100, ids)).loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if name in trained}
    assert all(gradients[name] is not None and gradients[name].abs().max() > 0 for name in trained if "lora_" in name)
    assert any(gradients[name] is not None and gradients[name].abs().max() > 0 for name in trained if "values" in name)


def test_an_audio_model_keeps_its_projector_and_is_asked_by_its_name(tmp_path, composite_folder, clips):
    from transformers import AutoModelForMultimodalLM

    base = AutoModelForMultimodalLM.from_pretrained(composite_folder)
    lora = LORA | {"target_modules": r".*language_model.*q_proj"}
    config = ListenConfig(pool_size=6, prompt_length=2, init_weights=False, modules_to_save=["multi_modal_projector"])
    model = add_lora(get_peft_model(base, config), LoraConfig(**lora)).eval()
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            assert parameter.requires_grad
            parameter.data *= 1.5
    model.save_pretrained(tmp_path)
    loaded = load_with_lora(AutoModelForMultimodalLM.from_pretrained(composite_folder), tmp_path)
    pipe = load_pipeline(str(tmp_path), device="cpu")
    batch = pipe.collate([pipe.preprocess(clips[0])])["model_inputs"]
    with torch.no_grad():
        expected = model(**batch).logits
        torch.testing.assert_close(loaded(**batch).logits, expected)
        torch.testing.assert_close(pipe.model(**batch).logits, expected)


def test_what_does_not_fit_is_refused():
    lora = LoraConfig(**LORA)
    with pytest.raises(ValueError, match="a LlamaForCausalLM, has no active LiSTEN adapter"):
        add_lora(small_models.make_llm("llama"), lora)
    with pytest.raises(ValueError, match="has no active LiSTEN adapter"):
        add_lora(get_peft_model(small_models.make_llm("llama"), lora), lora)
    model = adapted(small_models.make_llm("llama"))
    with pytest.raises(ValueError, match="has an adapter 'lora' already"):
        add_lora(model, lora)
    model = get_peft_model(small_models.make_llm("llama"), ListenConfig(pool_size=6, prompt_length=2))
    with pytest.raises(ValueError, match=r"`modules_to_save` is \['lm_head'\] in the LoraConfig"):
        add_lora(model, LoraConfig(**LORA, modules_to_save=["lm_head"]))
    with pytest.raises(TypeError, match="must be a LoraConfig, got a IA3Config"):
        add_lora(model, IA3Config())


@pytest.mark.parametrize("holds", ["nothing", "LISTEN", "LoRA", "LoRA of another name", "two of LISTEN"])
def test_a_folder_without_both_is_refused_with_what_it_holds(tmp_path, holds):
    if holds == "nothing":
        found = "none"
    elif holds == "LISTEN":
        get_peft_model(small_models.make_llm("llama"), ListenConfig(pool_size=6, prompt_length=2)).save_pretrained(
            tmp_path
        )
        found = r"the folder itself \(LISTEN\)"
    elif holds == "LoRA":
        get_peft_model(small_models.make_llm("llama"), LoraConfig(**LORA)).save_pretrained(tmp_path)
        found = r"the folder itself \(LORA\)"
    elif holds == "LoRA of another name":
        model = get_peft_model(small_models.make_llm("llama"), ListenConfig(pool_size=6, prompt_length=2))
        model.save_pretrained(tmp_path)
        get_peft_model(small_models.make_llm("llama"), LoraConfig(**LORA)).save_pretrained(tmp_path / "more")
        found = r"the folder itself \(LISTEN\), more \(LORA\)"
    else:
        adapted(small_models.make_llm("llama")).save_pretrained(tmp_path)
        adapted(small_models.make_llm("llama"), "second").save_pretrained(tmp_path)
        found = r"the folder itself \(LISTEN\), lora \(LORA\), second \(LISTEN\)"
    with pytest.raises(FileNotFoundError, match=f"must hold one LiSTEN adapter.*found: {found}"):
        load_with_lora(small_models.make_llm("llama"), tmp_path)


def test_pefts_mixed_model_refuses_the_method_by_name():
    with pytest.raises(ValueError, match="LISTEN.* is not compatible with the `PeftMixedModel`"):
        get_peft_model(small_models.make_llm("llama"), ListenConfig(pool_size=6, prompt_length=2), mixed=True)
