"""Deep values and the query from a hidden layer, in an audio model."""

import pytest
import torch
from peft import PeftModel, get_peft_model

from peft_listen import ListenConfig


DEPTH = {"value_layers": [1], "query_layer": 1, "query_text": "last", "query_audio_weight": 0.5}


@pytest.fixture
def inputs(make_processor, clip):
    text = ["<|audio|> What is said?", "the<|audio|>fox"]
    return make_processor(sound=True)(text=text, audio=[clip(1.0, 1), clip(0.4, 2)], sampling_rate=16000)


def adapted(base, **changes):
    torch.manual_seed(0)
    config = ListenConfig(pool_size=8, prompt_length=3, modules_to_save=["multi_modal_projector"], **changes)
    return get_peft_model(base, config)


def test_depth_is_trained_saved_and_loaded(make_model, inputs, tmp_path) -> None:
    model = adapted(make_model(sound=True), **DEPTH).train()
    model.get_base_model().gradient_checkpointing_enable()
    labels = inputs["input_ids"].clone()
    labels[:, :-2] = -100
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for _ in range(4):
        loss = model(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    pool = model.layer.pool_of()
    assert losses[-1] < losses[0]
    assert pool.deep_scales.all() and pool.text_query_means.any(dim=-1).all()
    assert pool.deep_values.any() and pool.deep_shared_values.any()

    model.eval()
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(**inputs, **settings)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(make_model(sound=True), tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    for mode in ({}, {"use_cache": False}, {"cache_implementation": "static", "disable_compile": True}):
        assert torch.equal(loaded.generate(**inputs, **settings, **mode), expected)


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_text_half_does_not_depend_on_the_projector(weight: float, make_model, make_processor, clip) -> None:
    inputs = make_processor(sound=True)(
        text=["<|audio|> What is said?"] * 2, audio=[clip(1.0, 1), clip(0.4, 2)], sampling_rate=16000
    )
    model = adapted(make_model(sound=True), query_layer=1, query_text="last", query_audio_weight=weight).eval()
    model(**inputs)
    before = model.last_selection.query
    for name, parameter in model.named_parameters():
        if "multi_modal_projector" in name:
            parameter.add_(torch.randn_like(parameter))
    model(**inputs)
    after = model.last_selection.query
    assert torch.allclose(after, before, atol=1e-5) == (weight == 0)
    assert torch.allclose(before[0], before[1], atol=1e-5) == (weight == 0)
