import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForMultimodalLM, pipeline

from peft_listen import AudioListenForCausalLM, ListenConfig
from tests.device import test_device


QFORMER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
PROJECTOR = ["multi_modal_projector"]
ADAPTERS = {
    "lora": lambda: LoraConfig(target_modules=r".*language_model.*\.(q|v)_proj", r=4, modules_to_save=PROJECTOR),
    "listen": lambda: ListenConfig(pool_size=8, prompt_length=3, init_weights=False, modules_to_save=PROJECTOR),
}


@pytest.fixture
def inputs(make_processor, clip):
    text = ["<|audio|> What is said?", "the<|audio|>fox"]
    return make_processor(sound=True)(text=text, audio=[clip(1.0, 1), clip(0.4, 2)], sampling_rate=16000)


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapter_and_projector_are_trained_saved_and_loaded(make_model, inputs, tmp_path, name: str) -> None:
    torch.manual_seed(0)
    model = get_peft_model(make_model(sound=True), ADAPTERS[name]())
    model.train()
    base = model.get_base_model().model
    assert not base.speech_tower.training
    assert not base.sound_tower.training
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    learning = {weight for weight, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(("multi_modal_projector" in weight) or (name in weight) for weight in learning)
    assert losses[-1] < losses[0]

    model.eval()
    expected = model.generate(**inputs, max_new_tokens=4, num_beams=2)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(sound=True), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    assert loaded.generate(**inputs, max_new_tokens=4, num_beams=2).tolist() == expected.tolist()


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_on_a_base_without_its_frozen_parts_loads_from_its_folder(
    published_parts, make_processor, inputs, tmp_path, name: str
) -> None:
    processor = make_processor(sound=True)
    base = AudioListenForCausalLM.from_sub_models_pretrained(
        **published_parts, tokenizer=processor.tokenizer, qformer_config=QFORMER
    )
    base.save_pretrained(tmp_path / "base", save_frozen=False)
    processor.save_pretrained(tmp_path / "base")
    base = AudioListenForCausalLM.from_pretrained(tmp_path / "base")
    model = get_peft_model(base, ADAPTERS[name]())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = model.eval()(**inputs).logits
        without = AudioListenForCausalLM.from_pretrained(tmp_path / "base")(**inputs).logits
    assert (expected - without).abs().max() > 1e-2
    for load in (
        AudioListenForCausalLM.from_pretrained,
        AutoModelForMultimodalLM.from_pretrained,
        lambda folder: pipeline("audio-text-to-text", model=str(folder), device=test_device()).model,
    ):
        loaded = load(tmp_path / "adapter").eval()
        with torch.no_grad():
            torch.testing.assert_close(loaded(**inputs).logits, expected)


@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_return_sequences": 2, "num_beams": 2}],
)
def test_selected_prompts_generate_the_same_with_every_cache(make_model, inputs, options) -> None:
    model = get_peft_model(make_model(sound=True), ADAPTERS["listen"]()).eval()
    plain = model.generate(**inputs, max_new_tokens=4, **{"use_cache": False, **_without_cache(options)})
    assert model.generate(**inputs, max_new_tokens=4, **options).tolist() == plain.tolist()


def test_prompts_projector_and_lora_are_trained_together(make_model, inputs) -> None:
    model = get_peft_model(make_model(sound=True), ADAPTERS["listen"](), adapter_name="prompts").train()
    lora = LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False)
    inject_adapter_in_model(lora, model.get_base_model(), adapter_name="lora")
    model.set_adapter("prompts")
    labels = inputs["input_ids"].masked_fill(torch.arange(inputs["input_ids"].shape[1]) < 2, -100)
    model(**inputs, labels=labels).loss.backward()
    trained = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
    for part in ("listen_pools", "lora_A", "multi_modal_projector.modules_to_save"):
        assert any(part in name for name in trained), part


def _without_cache(options: dict) -> dict:
    return {name: value for name, value in options.items() if "cache" not in name}
