import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from peft_listen import ListenConfig


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
def test_an_adapter_and_the_projector_learn_and_come_back(make_model, inputs, tmp_path, name: str) -> None:
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


@pytest.mark.parametrize(
    "options",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}, {"num_return_sequences": 2, "num_beams": 2}],
)
def test_chosen_prompts_generate_alike_with_every_cache(make_model, inputs, options) -> None:
    model = get_peft_model(make_model(sound=True), ADAPTERS["listen"]()).eval()
    plain = model.generate(**inputs, max_new_tokens=4, **{"use_cache": False, **_without_cache(options)})
    assert model.generate(**inputs, max_new_tokens=4, **options).tolist() == plain.tolist()


def _without_cache(options: dict) -> dict:
    return {name: value for name, value in options.items() if "cache" not in name}
