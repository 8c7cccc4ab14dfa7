"""`generate` with the adapter gives the tokens of an uncached decoding loop, in every generation mode."""

import copy

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import DynamicCache, GenerationConfig, StaticCache


GREEDY = {"max_new_tokens": 6, "do_sample": False}
STATIC = {"cache_implementation": "static", "disable_compile": True}


def _skip_without_static_cache(architecture):
    if architecture == "qwen3-vl":
        pytest.skip("transformers 5.23 itself generates with no static cache for this architecture")


def test_greedy_tokens_equal_an_uncached_decode_by_hand(architecture, build, attach, by_hand, padded, tokens):
    base = build(architecture)
    model = attach(base)
    rows = [tokens(1, length, seed=length)[0] for length in (7, 3)]
    sequences = model.generate(**padded(rows, "left"), **GREEDY)
    reference = by_hand(base, model)
    for row, sequence in zip(rows, sequences, strict=True):
        assert sequence[7 - len(row) :].tolist() == reference.greedy(row, 6).tolist()
    assert not torch.equal(sequences, base.generate(**padded(rows, "left"), **GREEDY))  # the prompts have an effect


def test_static_cache_gives_the_same_tokens(architecture, build, attach, padded, tokens):
    _skip_without_static_cache(architecture)
    model = attach(build(architecture))
    rows = [tokens(1, length, seed=length)[0] for length in (7, 3)]
    batch = padded(rows, "left")
    expected = model.generate(**batch, **GREEDY)
    assert torch.equal(model.generate(**batch, **GREEDY, **STATIC), expected)
    assert torch.equal(model.generate(batch["input_ids"][:1], **GREEDY, **STATIC), expected[:1])


def test_a_padded_batch_equals_the_base_model_on_embeddings_with_prompts(
    architecture, build, attach, by_hand, padded, tokens
):
    base = build(architecture)
    model = attach(base)
    batch = padded([tokens(1, length, seed=length)[0] for length in (7, 3)], "left")
    embeds, mask = base.get_input_embeddings()(batch["input_ids"]), batch["attention_mask"].bool()
    reference, rows, masks = by_hand(base, model), [], []
    for row, row_embeds, real in zip(batch["input_ids"], embeds, mask, strict=True):
        start = int(real.long().argmax())
        prompts = reference.prompts(row[real][None])[0].to(embeds)
        rows.append(torch.cat([row_embeds[:start], prompts, row_embeds[start:]]))
        masks.append(torch.cat([real[:start], torch.ones(4, dtype=torch.bool), real[start:]]))
    inputs = {"inputs_embeds": torch.stack(rows), "attention_mask": torch.stack(masks).long()}
    beams = {"max_new_tokens": 4, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    for settings in (GREEDY, beams):
        assert torch.equal(model.generate(**batch, **settings)[:, 7:], base.generate(**inputs, **settings))


def test_generation_without_a_cache_keeps_generated_tokens_out_of_the_query(architecture, build, attach, tokens):
    model = attach(build(architecture))
    input_ids = tokens()
    expected = model.generate(input_ids, **GREEDY)
    with model.base_model.record_selections() as records:
        assert torch.equal(model.generate(input_ids, **GREEDY, use_cache=False), expected)
    assert len(records) == 1


def test_beams_equal_those_without_a_cache(architecture, build, attach, tokens):
    model = attach(build(architecture))
    settings = {"max_new_tokens": 5, "num_beams": 3, "num_return_sequences": 2, "do_sample": False}
    input_ids = tokens()
    sequences = model.generate(input_ids, **settings)
    assert sequences.shape == (4, 11)
    assert torch.equal(sequences, model.generate(input_ids, **settings, use_cache=False))


@torch.no_grad()
def test_beams_equal_a_search_by_hand(build, attach, by_hand, tokens):
    base = build()
    model = attach(base)
    row = tokens(1)
    found = model.generate(
        row, num_beams=3, num_return_sequences=3, max_new_tokens=4, return_dict_in_generate=True, output_scores=True
    )
    reference = by_hand(base, model)
    prompts = reference.prompts(row)[0]
    beams, scores = row, torch.zeros(1)
    for _ in range(4):
        totals = scores[:, None] + reference.next_logits(beams, prompts).log_softmax(dim=-1)
        scores, best = totals.flatten().topk(3)
        beams = torch.cat([beams[best // 61], (best % 61)[:, None]], dim=1)
    assert torch.equal(found.sequences, beams)
    torch.testing.assert_close(found.sequences_scores, scores / 4, atol=1e-5, rtol=1e-5)


def test_sampling_under_a_seed_equals_a_loop_by_hand(architecture, build, attach, by_hand, tokens):
    base = build(architecture)
    model = attach(base)
    row = tokens(1)
    torch.manual_seed(3)
    sequences = model.generate(row, do_sample=True, top_k=0, max_new_tokens=6, num_return_sequences=4)
    reference = by_hand(base, model)
    prompts, expected = reference.prompts(row)[0], row.expand(4, -1)
    torch.manual_seed(3)
    for _ in range(6):
        probabilities = reference.next_logits(expected, prompts).softmax(dim=-1)
        expected = torch.cat([expected, torch.multinomial(probabilities, 1)], dim=1)
    assert torch.equal(sequences, expected)
    assert len({tuple(row) for row in sequences.tolist()}) > 1


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
@pytest.mark.parametrize("settings", [{}, STATIC, {"prefill_chunk_size": 2}], ids=["dynamic", "static", "chunked"])
def test_generate_is_the_same_on_the_peft_model_the_tuner_and_the_base_model(
    task_type, settings, build, attach, tokens
):
    model = attach(build(), task_type=task_type)
    input_ids = tokens()
    expected = model.generate(input_ids=input_ids, **GREEDY)
    for generate in (model.generate, model.base_model.generate, model.get_base_model().generate):
        assert torch.equal(generate(input_ids, **GREEDY, **settings), expected)
        assert torch.equal(generate(inputs=input_ids, **GREEDY, **settings), expected)
        assert torch.equal(generate(input_ids, GenerationConfig(**GREEDY, **settings, pad_token_id=0)), expected)


def test_embeddings_and_their_tokens_give_the_same_continuation(architecture, build, attach, tokens):
    model = attach(build(architecture))
    input_ids = tokens()
    embeds = model.get_input_embeddings()(input_ids)
    expected = model.generate(input_ids, **GREEDY)[:, 6:]
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), expected)
    both = model.generate(input_ids=input_ids, inputs_embeds=embeds, **GREEDY)
    assert torch.equal(both[:, 6:], expected)
    _skip_without_static_cache(architecture)
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY, **STATIC), expected)


@pytest.mark.parametrize("side", [None, "left"])
def test_a_chunked_prefill_selects_prompts_for_the_whole_input(architecture, side, build, attach, padded, tokens):
    if architecture in ("qwen2-vl", "qwen3-vl") and Version(transformers.__version__) < Version("5.20"):
        pytest.skip("older versions of transformers compute the positions of each chunk from the whole input")
    model = attach(build(architecture))
    batch = {"input_ids": tokens(2, 9)}
    if side is not None:
        batch = padded([tokens(1, length, seed=length)[0] for length in (9, 6)], side)
    expected = model.generate(**batch, **GREEDY)
    for chunk_size in (4, 9, 20):
        assert torch.equal(model.generate(**batch, **GREEDY, prefill_chunk_size=chunk_size), expected)
    beams = {"max_new_tokens": 3, "num_beams": 2, "do_sample": False}
    assert torch.equal(model.generate(**batch, **beams, prefill_chunk_size=4), model.generate(**batch, **beams))


def test_a_first_chunk_of_padding_raises(build, attach, padded, tokens):
    model = attach(build())
    batch = padded([tokens(1, 9)[0], tokens(1, 5)[0]], "left")
    with pytest.raises(ValueError, match=r"begins with 4 positions of padding.*`prefill_chunk_size`=4"):
        model.generate(**batch, **GREEDY, prefill_chunk_size=4)


def test_assisted_decoding_gives_the_greedy_tokens(architecture, build, attach, tokens):
    model = attach(build(architecture))
    assistant = build(architecture)  # without prompts, so some of its drafts are rejected
    row = tokens(1)
    expected = model.generate(row, max_new_tokens=8, do_sample=False)
    with model.base_model.record_selections() as records:
        sequences = model.generate(row, max_new_tokens=8, do_sample=False, assistant_model=assistant)
    assert torch.equal(sequences, expected)
    assert len(records) == 1
    repeated = torch.cat([row, row], dim=1)  # for the lookup to find something
    expected = model.generate(repeated, max_new_tokens=8, do_sample=False)
    assert torch.equal(
        model.generate(repeated, max_new_tokens=8, do_sample=False, prompt_lookup_num_tokens=3), expected
    )


@pytest.mark.parametrize("side", [None, "left"])
def test_a_filled_cache_can_be_continued_by_forward_passes(architecture, side, build, attach, padded, tokens):
    model = attach(build(architecture))
    batch = padded([tokens(1, length, seed=length)[0] for length in (8, 8 if side is None else 5)], "left")
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
    whole_prompt = torch.zeros_like(mask)
    whole_prompt[:, :5] = 1  # the second part is added later and is not in the query
    expected = model(**batch, listen_query_mask=whole_prompt).logits
    first = model(input_ids=input_ids[:, :5], attention_mask=mask[:, :5], use_cache=True)
    with_mask = model(input_ids=input_ids[:, 5:], attention_mask=mask, past_key_values=first.past_key_values)
    torch.testing.assert_close(with_mask.logits, expected[:, 5:], atol=1e-5, rtol=1e-5)
    if side is None:
        first = model(input_ids=input_ids[:, :5], use_cache=True)
        without = model(input_ids=input_ids[:, 5:], past_key_values=first.past_key_values)
        torch.testing.assert_close(without.logits, expected[:, 5:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", [None, "left"])
@pytest.mark.parametrize("kind", ["dynamic", "static"])
def test_generation_continues_from_a_filled_cache(architecture, side, kind, build, attach, padded, tokens):
    if kind == "static":
        _skip_without_static_cache(architecture)
    model = attach(build(architecture))
    # Without a mask, `generate` treats the pad token as padding at any position.
    settings = {**GREEDY, "disable_compile": True, "suppress_tokens": [0]}
    batch = padded([tokens(1, length, seed=length)[0] for length in (7, 7 if side is None else 5)], "left")
    cache = DynamicCache() if kind == "dynamic" else StaticCache(model.config.get_text_config(), max_cache_len=40)
    turn = model.generate(**batch, **settings, past_key_values=cache)
    more = torch.cat([turn, tokens(2, 3, seed=9)], dim=1)
    mask = torch.cat([batch["attention_mask"], torch.ones(2, 9, dtype=torch.long)], dim=1)
    query_mask = torch.zeros_like(mask)
    query_mask[:, :7] = 1  # the prompts of the first turn are kept
    expected = model.generate(more, attention_mask=mask, **settings, listen_query_mask=query_mask)

    sequences = model.generate(more, attention_mask=mask, **settings, past_key_values=copy.deepcopy(cache))
    assert torch.equal(sequences, expected)
    if side is None:
        assert torch.equal(model.generate(more, **settings, past_key_values=copy.deepcopy(cache)), expected)
    cached = cache.get_seq_length() - 4
    new = model.generate(more[:, int(cached) :], attention_mask=mask, **settings, past_key_values=copy.deepcopy(cache))
    assert torch.equal(new, expected[:, int(cached) :])


def test_lengths_mean_the_same_with_a_static_cache(build, attach, tokens):
    model = attach(build(eos_token_id=7))
    input_ids = tokens()
    for lengths in (
        {"max_length": 11},
        {"max_length": 11, "min_length": 9},
        {"max_new_tokens": 4, "min_new_tokens": 3},
        {},
    ):
        expected = model.generate(input_ids, do_sample=False, **lengths)
        assert torch.equal(model.generate(input_ids, do_sample=False, **lengths, **STATIC), expected)
        config = GenerationConfig(do_sample=False, pad_token_id=0, eos_token_id=7, **lengths)
        assert torch.equal(model.generate(input_ids, config, **STATIC), expected)
        assert config.max_length == lengths.get("max_length")  # the caller's configuration is unchanged
    with pytest.raises(ValueError, match=r"input has 6 tokens, so `max_length`=6 leaves none"):
        model.generate(input_ids, max_length=6, **STATIC)


@pytest.mark.parametrize("settings", [{}, STATIC], ids=["dynamic", "static"])
def test_outputs_of_generate_have_the_length_of_the_input(settings, build, attach, tokens):
    model = attach(build(attn_implementation="eager"))
    output = model.generate(
        tokens(),
        **GREEDY,
        **settings,
        return_dict_in_generate=True,
        output_hidden_states=True,
        output_attentions=True,
        output_logits=True,
    )
    assert output.sequences.shape == (2, 12)
    assert len(output.logits) == len(output.hidden_states) == 6
    assert output.hidden_states[0][0].shape == (2, 6, 32)
    assert output.attentions[0][0].shape[2] == 6
    assert output.hidden_states[1][0].shape == (2, 1, 32)
    assert output.past_key_values.get_seq_length() == 4 + 6 + 5


@pytest.mark.parametrize(
    "settings",
    [{}, {"num_beams": 2}, STATIC, {**STATIC, "num_beams": 2}, {"use_cache": False}, {"prefill_chunk_size": 3}],
    ids=["dynamic", "beams", "static", "static beams", "uncached", "chunked"],
)
def test_the_query_mask_sets_the_query(settings, build, attach, tokens):
    model = attach(build())
    input_ids = tokens()
    query_mask = torch.tensor([[1, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0]])
    model.generate(input_ids, **GREEDY, **settings, listen_query_mask=query_mask)
    query = model.base_model.last_selection.query
    query = query[:: len(query) // 2]  # one row per input
    embeds = model.get_input_embeddings()(input_ids)
    torch.testing.assert_close(query[0], embeds[0, [0, 1, 5]].mean(dim=0))
    torch.testing.assert_close(query[1], embeds[1, 2])


def test_a_query_mask_of_another_shape_raises(build, attach, tokens):
    model = attach(build())
    mask = torch.ones(2, 5)
    with pytest.raises(ValueError, match=r"shape of the input, \(2, 6\), got \(2, 5\)"):
        model.generate(tokens(), listen_query_mask=mask)
    with pytest.raises(ValueError, match=r"shape of the input, \(2, 6\), got \(2, 5\)"):
        model(tokens(), listen_query_mask=mask)


def test_padding_without_a_mask_is_recognized_by_the_pad_token(build, attach, padded, tokens):
    model = attach(build(eos_token_id=57))
    batch = padded([tokens(1, length, seed=length)[0] for length in (7, 3)], "left")
    expected = model.generate(**batch, **GREEDY)
    for settings in ({}, STATIC, {"prefill_chunk_size": 5}):
        assert torch.equal(model.generate(batch["input_ids"], **GREEDY, **settings), expected)


def test_repetition_of_the_input_is_also_penalized_with_a_static_cache(build, attach, tokens):
    model = attach(build())
    input_ids = tokens()
    settings = {**GREEDY, "repetition_penalty": 5.0}
    assert torch.equal(model.generate(input_ids, **settings, **STATIC), model.generate(input_ids, **settings))


def test_generation_without_input_begins_with_one_token(build, attach):
    model = attach(build())
    sequences = model.generate(**GREEDY)
    assert torch.equal(sequences, model.generate(torch.tensor([[1]]), **GREEDY))


def test_generation_inside_training_uses_the_prompt_length_of_evaluation(build, attach, tokens):
    model = attach(build(), stochastic_prompt_length=True).train()
    model.generate(tokens(), **GREEDY)
    assert model.base_model.last_selection.indices.shape == (2, 4)
    assert model.base_model.key_loss is None


@pytest.mark.parametrize("architecture", ["llava", "qwen2-vl"])
@pytest.mark.parametrize("settings", [{}, STATIC, {"use_cache": False}], ids=["dynamic", "static", "uncached"])
def test_images_are_in_the_query_and_before_the_answer(architecture, settings, build, attach):
    model = attach(build(architecture))
    input_ids = torch.tensor([[5, 6, 58, 60, 60, 60, 60, 57, 7, 8]])
    generator = torch.Generator().manual_seed(0)
    if architecture == "llava":
        image = {"pixel_values": torch.randn(1, 3, 4, 4, generator=generator)}
    else:
        image = {
            "pixel_values": torch.randn(4, 12, generator=generator),
            "image_grid_thw": torch.tensor([[1, 2, 2]]),
            "mm_token_type_ids": (input_ids == 60).long(),
        }
    sequences = model.generate(input_ids=input_ids, **image, **GREEDY, **settings)
    row = input_ids
    query_mask = torch.ones_like(row)
    for _ in range(6):
        if architecture == "qwen2-vl":
            image["mm_token_type_ids"] = (row == 60).long()
        query_mask = torch.nn.functional.pad(query_mask, (0, row.shape[1] - query_mask.shape[1]))
        logits = model(input_ids=row, **image, listen_query_mask=query_mask, use_cache=False).logits[:, -1]
        row = torch.cat([row, logits.argmax(dim=-1, keepdim=True)], dim=1)
    assert torch.equal(sequences, row)


def test_a_static_cache_raises_for_decoders_with_additional_inputs(build, attach):
    model = attach(build("qwen3-vl"))
    input_ids = torch.tensor([[5, 6, 58, 60, 57, 7, 8]])
    image = {
        "pixel_values": torch.randn(4, 12, generator=torch.Generator().manual_seed(0)),
        "image_grid_thw": torch.tensor([[1, 2, 2]]),
        "mm_token_type_ids": (input_ids == 60).long(),
    }
    assert model.generate(input_ids=input_ids, **image, **GREEDY).shape == (1, 13)
    with pytest.raises(NotImplementedError, match=r"`visual_pos_masks`, `deepstack_visual_embeds`.*dynamic cache"):
        model.generate(input_ids=input_ids, **image, **GREEDY, **STATIC)


def test_a_cache_that_does_not_match_the_adapter_raises(build, attach, tokens):
    model = attach(build())
    input_ids = tokens()
    with torch.no_grad(), model.disable_adapter():
        without = model(input_ids=input_ids, use_cache=True).past_key_values
    for call in (model, model.generate):
        with pytest.raises(ValueError, match=r"adapter was off, and the adapter is on now"):
            call(input_ids=input_ids, past_key_values=copy.deepcopy(without))
    with torch.no_grad():
        behind_prompts = model(input_ids=input_ids, use_cache=True).past_key_values
    with model.disable_adapter():
        for call in (model, model.generate):
            with pytest.raises(ValueError, match=r"adapter was on, and the adapter is off now"):
                call(input_ids=input_ids, past_key_values=copy.deepcopy(behind_prompts))


def test_unsupported_combinations_raise(build, attach, tokens):
    model = attach(build())
    row = tokens(1)
    cache = model(input_ids=row, use_cache=True).past_key_values
    with pytest.raises(ValueError, match=r"`prefill_chunk_size` together with a static or a filled cache"):
        model.generate(row, **GREEDY, **STATIC, prefill_chunk_size=2)
    with pytest.raises(ValueError, match=r"`prefill_chunk_size` together with a static or a filled cache"):
        model.generate(row.repeat(1, 2), **GREEDY, past_key_values=cache, prefill_chunk_size=2)
    with pytest.raises(ValueError, match=r"assisted decoding from a filled cache"):
        model.generate(row.repeat(1, 2), **GREEDY, past_key_values=cache, prompt_lookup_num_tokens=2)
    with pytest.raises(ValueError, match=r"cache holds 6 tokens; the input has 6"):
        model.generate(row, **GREEDY, past_key_values=cache)
    with pytest.raises(ValueError, match=r"mask covers 6 positions, but the cache holds 6 tokens"):
        model(input_ids=row[:, :1], attention_mask=torch.ones(1, 6), past_key_values=cache)


def test_a_static_cache_that_is_too_small_raises(build, attach, tokens):
    model = attach(build())
    cache = StaticCache(model.config, max_cache_len=14)
    with pytest.raises(ValueError, match=r"holds 14 positions, but 4 prompts, 6 tokens and 6 new ones need 15"):
        model.generate(tokens(), **GREEDY, past_key_values=cache)


def test_the_generate_of_the_class_raises_with_a_static_cache(build, attach, tokens):
    model = attach(build()).get_base_model()
    plain = transformers.GenerationMixin.generate
    assert torch.equal(plain(model, tokens(), **GREEDY), model.generate(tokens(), **GREEDY))
    with pytest.raises(ValueError, match=r"call `model.generate` itself, not the `generate` of the model's class"):
        plain(model, tokens(), **GREEDY, **STATIC)


def test_a_streamer_gets_the_input_and_the_new_tokens(build, attach, tokens):
    class Streamer(transformers.generation.BaseStreamer):
        def __init__(self):
            self.put_tokens = []

        def put(self, value):
            self.put_tokens.extend(value.flatten().tolist())

        def end(self):
            pass

    model = attach(build())
    for settings in ({}, STATIC):
        streamer = Streamer()
        sequences = model.generate(tokens(1), **GREEDY, **settings, streamer=streamer)
        assert streamer.put_tokens == sequences[0].tolist()


def test_generate_equals_the_base_model_with_the_adapter_off(build, attach, tokens):
    base = build()
    model = attach(base)
    with model.disable_adapter():
        for settings in ({}, STATIC, {"prefill_chunk_size": 2}):
            assert torch.equal(
                model.generate(tokens(), **GREEDY, **settings), base.generate(tokens(), **GREEDY, **settings)
            )
