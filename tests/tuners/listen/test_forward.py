"""A forward pass with the adapter equals that of the base model on `[V_selected; E]`, for every architecture."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


CLOSE = {"atol": 1e-5, "rtol": 1e-5}


def test_forward_equals_the_call_by_hand(architecture, build, attach, by_hand, tokens):
    base = build(architecture)
    model = attach(base)
    input_ids = tokens()
    output = model(input_ids=input_ids, output_hidden_states=True)
    expected = by_hand(base, model)(input_ids, output_hidden_states=True)

    torch.testing.assert_close(output.logits, expected.logits[:, 4:], **CLOSE)
    assert len(output.hidden_states) == len(expected.hidden_states)
    for hidden, by_hand_hidden in zip(output.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(hidden, by_hand_hidden[:, 4:], **CLOSE)
    assert (output.logits - base(input_ids).logits).abs().max() > 1e-2  # the prompts have an effect


def test_loss_and_gradient_of_the_values_equal_the_call_by_hand(architecture, build, attach, by_hand, tokens):
    base = build(architecture)
    model = attach(base, stochastic_prompt_length=False, key_loss_weight=0.0, pool_size=6).train()
    values = model.base_model.layer.listen_pools["default"].values
    input_ids = tokens()
    labels = input_ids.masked_fill(torch.arange(6) < 3, -100)
    model(input_ids=input_ids, labels=labels).loss.backward()
    gradient, values.grad = values.grad, None

    reference = by_hand(base, model)
    prompts = torch.stack([reference.prompts(row[None, :3])[0] for row in input_ids])
    logits = reference(input_ids, prompts).logits[:, 4:]
    loss = torch.nn.functional.cross_entropy(logits[:, 2:-1].flatten(0, 1), labels[:, 3:].flatten())
    loss.backward()

    assert gradient.abs().max() > 1e-4
    torch.testing.assert_close(gradient, values.grad, **CLOSE)
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(input_ids=input_ids, labels=labels).loss, loss.detach(), **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_row_gives_the_same_result_as_alone(architecture, side, build, attach, padded, tokens):
    model = attach(build(architecture))
    rows = [tokens(1, length, seed=length)[0] for length in (7, 3, 5)]
    batch = padded(rows, side)
    logits = model(**batch).logits
    for row, real, row_logits in zip(rows, batch["attention_mask"].bool(), logits, strict=True):
        torch.testing.assert_close(row_logits[real], model(input_ids=row[None]).logits[0], **CLOSE)


@given(left=st.integers(0, 4), right=st.integers(0, 4), k=st.integers(1, 12), length=st.integers(1, 6))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@torch.no_grad()
def test_no_amount_of_padding_changes_a_row(left, right, k, length, build, attach, tokens):
    model = attach(build("mistral"), prompt_length=k)
    row = tokens(1, length)
    batch = torch.nn.functional.pad(row, (left, right))
    mask = torch.nn.functional.pad(torch.ones_like(row), (left, right))
    logits = model(input_ids=batch, attention_mask=mask).logits[:, left : left + length]
    torch.testing.assert_close(logits, model(input_ids=row).logits, **CLOSE)


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_loss_does_not_depend_on_padding(side, build, attach, padded, tokens):
    model = attach(build(), stochastic_prompt_length=False).train()
    rows = [tokens(1, length, seed=length)[0] for length in (7, 3)]
    batch = padded(rows, side)
    supervised = batch["attention_mask"].clone().bool()
    for row, real in zip(supervised, batch["attention_mask"].bool(), strict=True):
        row[real.nonzero()[:2]] = False  # two tokens of prompt
    loss = model(**batch, labels=batch["input_ids"].masked_fill(~supervised, -100), num_items_in_batch=6).loss
    alone = [
        model(
            input_ids=row[None], labels=row[None].masked_fill(torch.arange(len(row)) < 2, -100), num_items_in_batch=6
        ).loss
        for row in rows
    ]
    torch.testing.assert_close(loss, sum(alone), **CLOSE)


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
def test_all_ways_of_calling_give_the_same_result(task_type, build, attach, tokens):
    model = attach(build(), task_type=task_type)
    input_ids = tokens()
    expected = model(input_ids=input_ids).logits
    mask = torch.ones_like(input_ids)
    embeds = model.get_input_embeddings()(input_ids)
    positions = torch.arange(6).expand(2, -1)

    torch.testing.assert_close(model(input_ids).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(model(input_ids, mask).logits, expected, **CLOSE)
    torch.testing.assert_close(model(input_ids=input_ids, attention_mask=mask.bool()).logits, expected, **CLOSE)
    torch.testing.assert_close(model(input_ids=input_ids, attention_mask=mask.float()).logits, expected, **CLOSE)
    torch.testing.assert_close(model(inputs_embeds=embeds).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(model(input_ids=input_ids, position_ids=positions).logits, expected, **CLOSE)
    torch.testing.assert_close(model(input_ids=input_ids, position_ids=positions[:1]).logits, expected, **CLOSE)
    torch.testing.assert_close(model.get_base_model()(input_ids).logits, expected, rtol=0, atol=0)
    torch.testing.assert_close(model(input_ids=input_ids, use_cache=False).logits, expected, rtol=0, atol=0)


def test_logits_to_keep_keeps_the_last_logits_of_the_input(architecture, build, attach, tokens):
    model = attach(build(architecture))
    input_ids = tokens()
    full = model(input_ids=input_ids).logits
    torch.testing.assert_close(model(input_ids=input_ids, logits_to_keep=2).logits, full[:, -2:], **CLOSE)
    kept = model(input_ids=input_ids, logits_to_keep=torch.tensor([0, 3])).logits
    torch.testing.assert_close(kept, full[:, [0, 3]], **CLOSE)


def test_logits_are_computed_from_contiguous_hidden_states(architecture, build, attach, tokens):
    model = attach(build(architecture))
    contiguous = []
    model.get_output_embeddings().register_forward_pre_hook(
        lambda module, arguments: contiguous.append(arguments[0].is_contiguous())
    )
    model(input_ids=tokens())
    assert contiguous == [True]


def test_attentions_have_a_row_per_token_and_a_column_per_prompt_and_token(
    architecture, build, attach, by_hand, tokens
):
    base = build(architecture, attn_implementation="eager")
    model = attach(base)
    input_ids = tokens()
    attentions = model(input_ids=input_ids, output_attentions=True).attentions
    expected = by_hand(base, model)(input_ids, output_attentions=True).attentions
    assert attentions[0].shape == (2, 4, 6, 10)
    for attention, by_hand_attention in zip(attentions, expected, strict=True):
        torch.testing.assert_close(attention, by_hand_attention[:, :, 4:], **CLOSE)


def test_a_tuple_is_returned_on_request(architecture, build, attach, tokens):
    model = attach(build(architecture))
    input_ids = tokens()
    output = model(input_ids=input_ids, labels=input_ids, output_hidden_states=True)
    as_tuple = model(input_ids=input_ids, labels=input_ids, output_hidden_states=True, return_dict=False)
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], output.loss, rtol=0, atol=0)
    torch.testing.assert_close(as_tuple[1], output.logits, rtol=0, atol=0)


def test_a_tuple_also_includes_the_key_loss(build, attach, tokens):
    model = attach(build(), stochastic_prompt_length=False).train()
    input_ids = tokens()
    with pytest.warns(UserWarning, match=r"no prompt"):
        loss = model(input_ids=input_ids, labels=input_ids).loss
    key_loss = model.base_model.key_loss
    torch.testing.assert_close(model(input_ids=input_ids, labels=input_ids, return_dict=False)[0], loss)
    torch.testing.assert_close(loss - 0.1 * key_loss, model.eval()(input_ids=input_ids, labels=input_ids).loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_base_keeps_a_float32_pool(architecture, dtype, build, attach, tokens):
    base = build(architecture).to(dtype)
    model = attach(base, stochastic_prompt_length=False).train()
    layer = model.base_model.layer
    assert layer.listen_pools["default"].keys.dtype == layer.listen_pools["default"].values.dtype == torch.float32
    input_ids = tokens()
    output = model(input_ids=input_ids, labels=input_ids.masked_fill(torch.arange(6) < 3, -100))
    assert output.logits.dtype == dtype
    assert output.loss.isfinite()
    output.loss.backward()
    for parameter in layer.pool_of().parameters():
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().max() > 0
    full = attach(build(architecture).to(dtype).float(), stochastic_prompt_length=False)
    full(input_ids=input_ids)
    model.eval()(input_ids=input_ids)
    assert torch.equal(model.base_model.last_selection.indices, full.base_model.last_selection.indices)


def test_selection_is_the_same_under_autocast(build, attach, tokens):
    model = attach(build())
    input_ids = tokens(4, 9)
    model(input_ids=input_ids)
    expected = model.base_model.last_selection
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=input_ids)
    assert torch.equal(model.base_model.last_selection.scores, expected.scores)


def test_prompts_come_before_images_and_text(build, attach, by_hand):
    base = build("llava")
    model = attach(base)
    input_ids = torch.tensor([[5, 60, 60, 60, 60, 7, 8]])
    pixel_values = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    logits = model(input_ids=input_ids, pixel_values=pixel_values).logits

    image = base.get_image_features(pixel_values).pooler_output[0]
    embeds = base.get_input_embeddings()(input_ids)
    embeds = torch.cat([embeds[:, :1], image[None], embeds[:, 5:]], dim=1)
    reference = by_hand(base, model)
    values = model.base_model.layer.listen_pools["default"].values
    prompts = values[reference.indices(embeds[0].mean(dim=0))]
    expected = base(inputs_embeds=torch.cat([prompts[None], embeds], dim=1)).logits
    torch.testing.assert_close(logits, expected[:, 4:], **CLOSE)


def test_three_dimensional_positions_of_an_image_are_shifted(build, attach, by_hand):
    base = build("qwen2-vl")
    model = attach(base)
    input_ids = torch.tensor([[5, 6, 58, 60, 60, 60, 60, 57, 7, 8]])
    image = {
        "pixel_values": torch.randn(4, 12, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "mm_token_type_ids": (input_ids == 60).long(),
    }
    logits = model(input_ids=input_ids, **image).logits
    calls = []
    handle = base.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    base(input_ids=input_ids, **image)
    handle.remove()
    embeds, positions = calls[0]["inputs_embeds"], calls[0]["position_ids"]
    assert positions.ndim == 3
    prompts = model.base_model.layer.listen_pools["default"].values[model.base_model.last_selection.indices]
    hidden = base.model.language_model(
        inputs_embeds=torch.cat([prompts, embeds], dim=1),
        position_ids=torch.cat([torch.arange(4).expand(len(positions), 1, -1), positions + 4], dim=-1),
    ).last_hidden_state
    torch.testing.assert_close(logits, base.lm_head(hidden)[:, 4:], **CLOSE)


def test_features_added_in_deeper_layers_stay_at_their_images(build, attach):
    base = build("qwen3-vl")
    model = attach(base)
    input_ids = torch.tensor([[5, 6, 58, 60, 57, 7, 8]])
    image = {
        "pixel_values": torch.randn(4, 12, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "mm_token_type_ids": (input_ids == 60).long(),
    }
    logits = model(input_ids=input_ids, **image).logits
    calls = []
    handle = base.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True
    )
    base(input_ids=input_ids, **image)
    handle.remove()
    (call,) = calls
    prompts = model.base_model.layer.listen_pools["default"].values[model.base_model.last_selection.indices]
    hidden = base.model.language_model(
        inputs_embeds=torch.cat([prompts, call["inputs_embeds"]], dim=1),
        position_ids=torch.cat(
            [torch.arange(4).expand(len(call["position_ids"]), 1, -1), call["position_ids"] + 4], -1
        ),
        visual_pos_masks=torch.cat([torch.zeros(1, 4, dtype=torch.bool), call["visual_pos_masks"]], dim=1),
        deepstack_visual_embeds=call["deepstack_visual_embeds"],
    ).last_hidden_state
    torch.testing.assert_close(logits, base.lm_head(hidden)[:, 4:], **CLOSE)


def test_token_types_raise_because_prompts_have_none(build, attach, tokens):
    model = attach(build("gpt2"))
    with pytest.raises(ValueError, match=r"cannot insert prompts into `token_type_ids`"):
        model(input_ids=tokens(), token_type_ids=torch.zeros(2, 6, dtype=torch.long))


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        ({"cu_seq_lens_q": torch.tensor([0, 3, 6], dtype=torch.int32)}, "packed sequences .`cu_seq_lens_q` was given"),
        ({"seq_idx": torch.tensor([[0, 0, 0, 1, 1, 1]])}, "packed sequences .`seq_idx` was given"),
        ({"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]])}, "`position_ids` start again"),
        ({"position_ids": torch.tensor([[0, 0, 1, 2, 3, 4]])}, "`position_ids` start again"),
        (
            {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "attention_mask": torch.ones(1, 6)},
            "`position_ids` start again",
        ),
    ],
)
def test_packed_sequences_raise(packed, message, build, attach, tokens):
    model = attach(build())
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens(1), **packed)


@pytest.mark.parametrize("mask", [torch.zeros(2, 1, 6, 6), {"full_attention": None}], ids=["4-d", "dict"])
def test_a_prepared_mask_raises(mask, build, attach, tokens):
    model = attach(build())
    with pytest.raises(ValueError, match=r"mask of shape \(batch_size, sequence_length\)"):
        model(input_ids=tokens(), attention_mask=mask)


def test_a_failed_forward_pass_leaves_no_state(build, attach, tokens):
    model = attach(build(), stochastic_prompt_length=False)
    input_ids = tokens()
    expected = model(input_ids=input_ids).logits
    labels = input_ids.masked_fill(torch.arange(6) < 3, -100)
    attention = model.get_base_model().model.layers[1].self_attn
    handle = attention.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match=r"out of memory"):
        model(input_ids=input_ids, labels=labels, listen_query_mask=torch.ones(2, 6))
    handle.remove()
    assert torch.equal(model(input_ids=input_ids).logits, expected)

    with pytest.raises(ValueError, match=r"prepared mask"):  # rejected before the backbone runs
        model(input_ids=input_ids, labels=labels, attention_mask=torch.zeros(2, 1, 6, 6))
    assert torch.equal(model(input_ids=input_ids).logits, expected)
