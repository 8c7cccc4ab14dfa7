"""`prompt_embeds`: an untouched language model generates from them what the adapted model generates."""

import pytest
import torch
from peft import LoraConfig, get_peft_model

from peft_listen import ListenConfig, prompt_embeds, use_prompt_length
from tests.small_models import LISTEN_VARIANTS


GREEDY = {"max_new_tokens": 6, "do_sample": False}


def new_tokens(generated):
    return generated[:, -GREEDY["max_new_tokens"] :].tolist()


def test_the_untouched_model_generates_the_same_tokens(architecture, build, attach, tokens):
    base = build(architecture)
    model, input_ids = attach(base), tokens()
    found = model.prompt_embeds(input_ids=input_ids)
    assert found["inputs_embeds"].shape == (2, 4 + 6, found["inputs_embeds"].shape[-1])
    assert found["attention_mask"].shape == (2, 4 + 6)
    expected = new_tokens(model.generate(input_ids, **GREEDY))
    assert new_tokens(base.generate(**found, **GREEDY)) == expected
    # The prompts matter: without them the tokens differ.
    assert new_tokens(base.generate(input_ids, **GREEDY)) != expected


def test_images_are_part_of_them_unless_deeper_layers_get_them_too(build, attach):
    input_ids = torch.tensor([[5, 6, 58, 60, 60, 60, 60, 57, 7, 8]])
    image = {
        "pixel_values": torch.randn(4, 12, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
    }
    base = build("qwen2-vl")
    inputs = {"input_ids": input_ids, **image, "mm_token_type_ids": (input_ids == 60).long()}
    model = attach(base)
    found = model.prompt_embeds(**inputs)
    assert found["position_ids"].ndim == 3
    assert new_tokens(base.generate(**found, **GREEDY)) == new_tokens(model.generate(**inputs, **GREEDY))

    input_ids = input_ids[:, [0, 1, 2, 3, 7, 8, 9]]
    inputs = {"input_ids": input_ids, **image, "mm_token_type_ids": (input_ids == 60).long()}
    with pytest.raises(NotImplementedError, match="in addition to the embeddings"):
        attach(build("qwen3-vl")).prompt_embeds(**inputs)


@pytest.mark.parametrize("variant", sorted(LISTEN_VARIANTS))
def test_every_kind_of_adapter(variant, build, attach, tokens):
    base = build()
    model, input_ids = attach(base, **LISTEN_VARIANTS[variant]), tokens()
    if "value_layers" in LISTEN_VARIANTS[variant]:
        with pytest.raises(ValueError, match=r"layers \[0, 1\].*`value_layers`.*cannot express"):
            model.prompt_embeds(input_ids=input_ids)
        return
    expected = new_tokens(model.generate(input_ids, **GREEDY))
    assert new_tokens(base.generate(**model.prompt_embeds(input_ids=input_ids), **GREEDY)) == expected


def test_they_are_those_of_the_call_by_hand(build, attach, by_hand, tokens):
    base = build()
    model, input_ids = attach(base), tokens()
    expected = by_hand(base, model).inputs_embeds(input_ids)
    torch.testing.assert_close(model.prompt_embeds(input_ids=input_ids)["inputs_embeds"], expected)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_row_without_its_padding_is_what_it_is_alone(side, build, attach, tokens, padded):
    model = attach(build())
    rows = [tokens(1, length, seed=length)[0] for length in (3, 7, 5)]
    found = model.prompt_embeds(**padded(rows, side))
    for row, embeds, mask in zip(rows, found["inputs_embeds"], found["attention_mask"], strict=True):
        alone = model.prompt_embeds(input_ids=row[None])["inputs_embeds"][0]
        torch.testing.assert_close(embeds[mask.bool()], alone)


def test_a_left_padded_batch_is_generated_as_it_is(build, attach, tokens, padded):
    base = build()
    model = attach(base)
    batch = padded([tokens(1, length, seed=length)[0] for length in (3, 7, 5)], "left")
    expected = new_tokens(model.generate(**batch, **GREEDY))
    assert new_tokens(base.generate(**model.prompt_embeds(**batch), **GREEDY)) == expected


def test_the_query_can_be_named_and_the_length_changed(build, attach, tokens):
    base = build()
    model, input_ids = attach(base), tokens(1)
    query_mask = torch.zeros_like(input_ids)
    query_mask[:, :2] = 1
    with model.use_prompt_length(2), model.record_selections() as records:
        found = model.prompt_embeds(input_ids=input_ids, listen_query_mask=query_mask)
        expected = model.generate(input_ids, listen_query_mask=query_mask, **GREEDY)
    assert found["inputs_embeds"].shape[1] == 2 + 6
    assert torch.equal(records[0].indices, records[1].indices)
    assert new_tokens(base.generate(**found, **GREEDY)) == new_tokens(expected)


def test_the_function_takes_a_model_without_a_peft_model(build, attach, tokens, tmp_path):
    attach(build()).save_pretrained(tmp_path)
    model, input_ids = build(), tokens()
    model.load_adapter(str(tmp_path))
    expected = new_tokens(model.generate(input_ids, **GREEDY))
    assert new_tokens(build().generate(**prompt_embeds(model, input_ids=input_ids), **GREEDY)) == expected
    with use_prompt_length(model, 1):
        assert prompt_embeds(model, input_ids=input_ids)["inputs_embeds"].shape[1] == 1 + 6


def test_without_an_active_adapter_they_are_the_embeddings(build, attach, tokens):
    base = build()
    model, input_ids = attach(base), tokens()
    with model.disable_adapter():
        found = model.prompt_embeds(input_ids=input_ids)
    torch.testing.assert_close(found["inputs_embeds"], base.get_input_embeddings()(input_ids))
    with pytest.raises(ValueError, match="no LiSTEN adapter"):
        prompt_embeds(base, input_ids=input_ids)


@pytest.mark.parametrize("target", ["q_proj", "lm_head"])
def test_a_language_model_with_lora_is_refused(target, build, attach, tokens):
    model, input_ids = attach(build()), tokens()
    base = model.get_base_model()
    base.add_adapter(LoraConfig(target_modules=[target], init_lora_weights=False), "lora")
    model.set_adapter("default")
    with pytest.raises(ValueError, match=r"trained parts beside the prompts.*Disable that adapter"):
        model.prompt_embeds(input_ids=input_ids)
    base.disable_adapters()
    found = prompt_embeds(base, input_ids=input_ids)
    torch.testing.assert_close(found["inputs_embeds"], base.get_input_embeddings()(input_ids))


def test_saved_modules_of_the_language_model_are_refused(build, tokens):
    model = get_peft_model(build(), ListenConfig(pool_size=8, prompt_length=2, modules_to_save=["lm_head"]))
    with pytest.raises(ValueError, match="its head' is a ModulesToSaveWrapper"):
        model.prompt_embeds(input_ids=tokens())


def test_a_model_that_does_not_generate_is_refused(build, attach):
    model = attach(build())
    model.base_model.layer.generation = None
    with pytest.raises(ValueError, match="does not generate text"):
        model.prompt_embeds()
