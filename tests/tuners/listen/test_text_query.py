"""A query from a hidden layer: the decoder's state for the text alone, and the mean of the embeddings of audio or images."""

import copy
import threading

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, LlamaConfig

from peft_listen import ListenConfig
from tests.call_by_hand import ByHand, DeepByHand
from tests.device import place
from tests.tuners.listen.test_synchronization import count_reads


CLOSE = {"atol": 1e-5, "rtol": 1e-5}
GREEDY = {"max_new_tokens": 5, "do_sample": False}
STATIC = {"cache_implementation": "static", "disable_compile": True}
FIXED = {"stochastic_prompt_length": False}


@pytest.fixture
def image_row():
    """The tokens of a row with an image, whose placeholder is 60."""
    return torch.tensor([[5, 60, 60, 60, 60, 7, 8]])


def supervised(input_ids, prompt=3):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < prompt, -100)


@pytest.fixture
def attach_text(attach):
    def attach_text(base, query_layer=1, query_text="last", **changes):
        settings = {"query_pooling": "modality_mean", "query_layer": query_layer, "query_text": query_text, **changes}
        return attach(base, **settings)

    return attach_text


@torch.no_grad()
def states_by_hand(base, row, num_layers):
    """Hidden states of a row of tokens after some layers of a model without adapter, `(length, hidden_size)`."""
    found = []
    layers = DeepByHand(base, None).layers
    handle = layers[num_layers - 1].register_forward_hook(
        lambda module, args, output: found.append(output if torch.is_tensor(output) else output[0])
    )
    base(input_ids=row[None], use_cache=False)
    handle.remove()
    return found[0][0]


def pooled(states, query_text):
    return states[-1] if query_text == "last" else states.mean(dim=0)


@pytest.fixture
def image():
    return torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def image_embeds(build, image):
    with torch.no_grad():
        return build("llava").get_image_features(image).pooler_output[0]


# -------------------------------------------------------------------------------------------------------------- the query


@pytest.mark.parametrize(("query_layer", "query_text"), [(1, "last"), (2, "last"), (1, "mean")])
def test_the_query_and_its_prompts_equal_those_by_hand(
    architecture, query_layer, query_text, build, attach_text, tokens
):
    if architecture == "opt-projected":
        pytest.skip("refused: its layers are wider than its embeddings")
    base, input_ids = build(architecture), tokens()
    model = attach_text(base, query_layer, query_text)
    logits = model(input_ids).logits
    states = [pooled(states_by_hand(base, row, query_layer), query_text) for row in input_ids]
    queries = F.normalize(torch.stack(states), dim=-1)
    torch.testing.assert_close(model.last_selection.query, queries, **CLOSE)
    reference = ByHand(base, model)
    prompts = torch.stack([reference.pool.values[reference.indices(query)] for query in queries])
    torch.testing.assert_close(logits, reference(input_ids, prompts).logits[:, 4:], **CLOSE)


@pytest.mark.parametrize("query_text", ["last", "mean"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_does_not_change_the_query(architecture, side, query_text, build, attach_text, padded, tokens):
    if architecture == "opt-projected":
        pytest.skip("refused: its layers are wider than its embeddings")
    model = attach_text(build(architecture), query_text=query_text)
    rows = [tokens(1, length, seed=length)[0] for length in (7, 3, 5)]
    batch = padded(rows, side)
    logits, queries = model(**batch).logits, model.last_selection.query
    for row, real, row_logits, query in zip(rows, batch["attention_mask"].bool(), logits, queries, strict=True):
        torch.testing.assert_close(row_logits[real], model(input_ids=row[None]).logits[0], **CLOSE)
        torch.testing.assert_close(query, model.last_selection.query[0], **CLOSE)


@pytest.mark.parametrize("query_text", ["last", "mean"])
def test_the_answer_is_not_read(query_text, build, attach_text, tokens):
    base, input_ids = build(), tokens()
    model = attach_text(base, query_text=query_text)
    expected = F.normalize(pooled(states_by_hand(base, input_ids[0, :3], 1), query_text), dim=-1)
    first_three = (torch.arange(6) < 3).long().expand(2, -1)
    for inputs in ({"labels": supervised(input_ids)}, {"listen_query_mask": first_three}):
        model(input_ids=input_ids, **inputs)
        torch.testing.assert_close(model.last_selection.query[0], expected, **CLOSE)


def test_ignored_tokens_are_read_and_not_averaged(build, attach_text):
    base, row = build(), torch.tensor([9, 30, 9, 31, 9])
    states = states_by_hand(base, row, 1)
    for query_text, expected in (("mean", states[[1, 3]].mean(dim=0)), ("last", states[-1])):
        model = attach_text(base, query_text=query_text, query_ignored_token_ids=[9])
        model(row[None])
        torch.testing.assert_close(model.last_selection.query[0], F.normalize(expected, dim=-1), **CLOSE)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("query_text", ["last", "mean"])
def test_text_is_read_without_the_image_and_both_halves_are_added(
    weight, query_text, build, attach_text, image, image_embeds, image_row
):
    base = build("llava")
    model = attach_text(base, query_text=query_text, query_audio_weight=weight)
    text = pooled(states_by_hand(base, torch.tensor([5, 7, 8]), 1), query_text)
    expected = F.normalize(text, dim=-1) + weight * F.normalize(image_embeds.mean(dim=0), dim=-1)
    inputs = {"input_ids": image_row, "pixel_values": image}
    model(**inputs)
    torch.testing.assert_close(model.last_selection.query[0], expected, **CLOSE)
    padded = {"input_ids": F.pad(image_row, (2, 0)), "attention_mask": F.pad(torch.ones_like(image_row), (2, 0))}
    model(**padded, pixel_values=image)
    torch.testing.assert_close(model.last_selection.query[0], expected, **CLOSE)


def test_rows_without_text_or_without_an_image_have_the_other_half(build, attach_text, image, image_embeds, image_row):
    base = build("llava")
    model = attach_text(base, query_audio_weight=0.25)
    row = torch.tensor([9, 10, 11, 12, 13, 7, 8])
    model(input_ids=torch.cat([image_row, row[None]]), pixel_values=image)
    text = F.normalize(states_by_hand(base, row, 1)[-1], dim=-1)
    torch.testing.assert_close(model.last_selection.query[1], text, **CLOSE)
    model(input_ids=image_row, pixel_values=image, listen_query_mask=(image_row == 60).long())
    alone = F.normalize(image_embeds.mean(dim=0), dim=-1)  # with its full weight: there is nothing else
    torch.testing.assert_close(model.last_selection.query[0], alone, **CLOSE)


def test_only_the_layers_that_are_needed_run(build, attach_text, tokens):
    model = attach_text(build())
    calls = [0, 0]
    for number, layer in enumerate(model.get_base_model().model.layers):
        layer.register_forward_hook(
            lambda *_, number=number: calls.__setitem__(number, calls[number] + 1), always_call=True
        )
    model(tokens())
    assert calls == [2, 1]


def test_deep_values_are_not_in_the_query(build, attach_text, tokens):
    base, input_ids = build(), tokens()
    models = [attach_text(base, query_layer=2, **changes) for changes in ({}, {"value_layers": [0, 1]})]
    logits = [model(input_ids).logits for model in models]
    torch.testing.assert_close(models[0].last_selection.query, models[1].last_selection.query)
    assert not torch.allclose(*logits)


def test_selections_without_a_forward_pass_use_the_same_query(build, attach_text, tokens):
    model, input_ids = attach_text(build()), tokens()
    model(input_ids)
    output = model.layer.hooks.selection_for(input_ids=input_ids)
    torch.testing.assert_close(output.query, model.last_selection.query)
    assert torch.equal(output.selection.indices, model.last_selection.indices)


# -------------------------------------------------------------------------------------------------------------- generation


@pytest.mark.parametrize(
    "settings",
    [{}, STATIC, {"use_cache": False}, {"prefill_chunk_size": 5}, {"num_beams": 2}, {"prompt_lookup_num_tokens": 2}],
    ids=["dynamic", "static", "uncached", "chunked", "beams", "lookup"],
)
def test_generation_reads_the_text_once(settings, build, attach_text, padded, tokens):
    model = attach_text(build())
    batch = padded([tokens(1, length, seed=length)[0] for length in (7, 4)], "left")
    if "prompt_lookup_num_tokens" in settings:
        batch = {"input_ids": tokens(1, 7)}
    model(**batch)
    expected = model.last_selection.indices
    with model.record_selections() as records:
        sequences = model.generate(**batch, **GREEDY, **settings)
    (record,) = records
    assert torch.equal(record.indices[:: len(record.indices) // len(expected)], expected)
    if "num_beams" not in settings:
        assert torch.equal(sequences, model.generate(**batch, **GREEDY))


# ---------------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("use_reentrant", [None, False, True])
def test_gradient_checkpointing_does_not_change_gradients(use_reentrant, build, attach_text, tokens):
    model, input_ids = attach_text(build(), selector="attention", **FIXED).train(), tokens()

    def gradients():
        model.zero_grad()
        model(input_ids=input_ids, labels=supervised(input_ids)).loss.backward()
        return [parameter.grad.clone() for parameter in model.layer.pool_of().parameters()]

    expected = gradients()
    settings = None if use_reentrant is None else {"use_reentrant": use_reentrant}
    model.get_base_model().gradient_checkpointing_enable(gradient_checkpointing_kwargs=settings)
    for checkpointed, plain in zip(gradients(), expected, strict=True):
        assert plain.abs().max() > 0
        torch.testing.assert_close(checkpointed, plain, **CLOSE)


def test_the_running_means_of_both_halves_are_subtracted(build, attach_text, image):
    base = build("llava")
    model = attach_text(base, center_queries=True, query_mean_momentum=0.5, **FIXED).train()
    pool = model.layer.pool_of()
    means, query_mean = torch.zeros(2, 32), torch.zeros(32)
    for step in range(4):
        model.begin_step(step)
        torch.testing.assert_close(pool.text_query_means, means, **CLOSE)
        torch.testing.assert_close(pool.query_mean, query_mean, **CLOSE)
        pixel_values = image * (step + 1)
        row = torch.tensor([5, 60, 60, 60, 60, 7 + step, 8])
        labels = row[None].masked_fill(torch.arange(7) < 6, -100)
        model(input_ids=row[None], pixel_values=pixel_values, labels=labels)
        with torch.no_grad():
            audio = base.get_image_features(pixel_values).pooler_output[0].mean(dim=0)
        halves = torch.stack([states_by_hand(base, torch.tensor([5, 7 + step]), 1)[-1], audio])
        query = F.normalize(halves - means, dim=-1).sum(dim=0)
        torch.testing.assert_close(model.last_selection.query[0], query, **CLOSE)
        rate = max(1 / (step + 1), 0.5)
        means, query_mean = torch.lerp(means, halves, rate), torch.lerp(query_mean, query, rate)


def test_a_half_that_is_not_there_does_not_move_its_mean(build, attach_text, tokens):
    model = attach_text(build("llava"), center_queries=True, **FIXED).train()
    pool = model.layer.pool_of()
    with torch.no_grad():
        pool.text_query_means[1] = 3.0
    for step in range(3):
        model.begin_step(step)
        model(input_ids=tokens(), labels=supervised(tokens()))
    assert pool.text_query_means[0].abs().max() > 0
    torch.testing.assert_close(pool.text_query_means[1], torch.full((32,), 3.0))


def test_evaluation_does_not_change_the_means(build, attach_text, tokens):
    model = attach_text(build(), center_queries=True)
    for step in range(2):
        model.begin_step(step)
        model(input_ids=tokens(), labels=supervised(tokens()))
    assert not model.layer.pool_of().text_query_means.any()


def test_keys_can_be_initialized_from_these_queries(build, attach_text, tokens):
    model = attach_text(build(), center_queries=True, pool_size=4, prompt_length=1, **FIXED)
    with model.record_selections() as records:
        for seed in range(12):
            model(tokens(1, 4 + seed % 3, seed=seed))
    queries = place(torch.cat([record.query for record in records]))  # records are on the CPU
    model.init_keys_from(queries)
    pool = model.layer.pool_of()
    torch.testing.assert_close(pool.query_mean, queries.mean(dim=0), **CLOSE)
    cosines = F.cosine_similarity((queries - pool.query_mean)[:, None], pool.keys[None], dim=-1)
    assert cosines.amax(dim=1).mean() > 0.5


# ------------------------------------------------------------------------------------------------------------ adapter's life


def test_no_hook_stays_on_the_layers(build, attach_text, tokens):
    model = attach_text(build())
    layers = model.get_base_model().model.layers
    hooks = [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers]
    assert hooks == [0, 0]
    model(tokens())

    def stop(*_):
        handle.remove()
        raise KeyboardInterrupt

    handle = layers[0].self_attn.register_forward_pre_hook(stop)
    expected = model.last_selection.query
    with pytest.raises(KeyboardInterrupt):
        model(tokens())
    assert [len(layer._forward_hooks) + len(layer._forward_pre_hooks) for layer in layers] == hooks
    model(tokens())
    assert torch.equal(model.last_selection.query, expected)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saving_and_loading_gives_the_same_model(low_cpu_mem_usage, build, attach_text, tokens, tmp_path):
    base = build()
    model = attach_text(base, center_queries=True, query_audio_weight=0.5)
    with torch.no_grad():
        model.layer.pool_of().text_query_means.normal_()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(loaded.layer.pool_of().text_query_means, model.layer.pool_of().text_query_means)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert torch.equal(loaded.last_selection.query, model.last_selection.query)


def test_copies_read_their_own_decoder(build, attach_text, tokens):
    model = attach_text(build())
    expected = model(tokens()).logits
    duplicate = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.get_base_model().parameters():
            parameter.zero_()
    assert torch.equal(duplicate(tokens()).logits, expected)


def test_adapters_with_other_queries_can_coexist(build, attach, attach_text, tokens):
    base = build()
    model = attach(base)
    expected = model(tokens()).logits
    config = ListenConfig(pool_size=12, prompt_length=4, query_layer=1, init_weights=False, center_queries=False)
    model.add_adapter("text", config)
    assert torch.equal(model(tokens()).logits, expected)
    model.set_adapter("text")
    model(tokens())
    torch.testing.assert_close(model.last_selection.query.norm(dim=-1), torch.ones(2))
    with model.disable_adapter():
        assert torch.equal(model(tokens()).logits, base(tokens()).logits)


@torch.no_grad()
def test_threads_get_their_own_queries(build, attach_text, tokens):
    model = attach_text(build())
    inputs = [tokens(1 + seed % 3, 4 + seed % 4, seed=seed) for seed in range(8)]
    expected = [model(row).logits for row in inputs]
    found, barrier = [None] * len(inputs), threading.Barrier(len(inputs))

    def worker(number):
        barrier.wait()
        for _ in range(10):
            found[number] = model(inputs[number]).logits

    threads = [threading.Thread(target=worker, args=(number,)) for number in range(len(inputs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for logits, expected_logits in zip(found, expected, strict=True):
        torch.testing.assert_close(logits, expected_logits, **CLOSE)


@pytest.mark.cpu_only("a dispatch mode counts the reads there")
@torch.no_grad()
def test_only_a_prefill_reads_values_from_the_device(build, attach, attach_text, tokens):
    """Once for the length of the text, and once because the decoder looks for packed sequences."""
    base, input_ids = build(), tokens()
    mask = torch.ones_like(input_ids)

    def reads(model):
        model(input_ids=input_ids, attention_mask=mask)  # the first call checks the pool
        prefill = count_reads(lambda: model(input_ids=input_ids, attention_mask=mask))
        cache = model(input_ids=input_ids, use_cache=True).past_key_values
        return prefill, count_reads(lambda: model(input_ids=input_ids[:, :1], past_key_values=cache))

    plain, text = reads(attach(base)), reads(attach_text(base))
    assert text[0] <= plain[0] + 2
    assert text[1] == plain[1]


# ---------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"query_layer": -1}, "`query_layer` must be an integer of at least 0, got -1"),
        ({"query_layer": 1.5}, "`query_layer` must be an integer of at least 0, got 1.5"),
        ({"query_layer": True}, "`query_layer` must be an integer of at least 0, got True"),
        ({"query_layer": 1, "query_text": "first"}, "`query_text` must be 'mean' or 'last', got 'first'"),
        ({"query_layer": 1, "query_audio_weight": -0.5}, "`query_audio_weight` must be a finite number of at least 0"),
        ({"query_layer": 1, "query_audio_weight": float("nan")}, "`query_audio_weight` must be a finite number"),
        ({"query_layer": 1, "query_audio_weight": "much"}, "`query_audio_weight` must be a finite number"),
        ({"query_text": "last"}, "have an effect only with a `query_layer` of at least 1"),
        ({"query_audio_weight": 0.0}, "have an effect only with a `query_layer` of at least 1"),
        (
            {"query_layer": 1, "query_pooling": "mean"},
            "`query_layer`=1 reads .* needs `query_pooling='modality_mean'`",
        ),
    ],
)
def test_invalid_values_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        ListenConfig(**settings)


def test_a_layer_that_the_decoder_does_not_have_raises(architecture, build):
    base = build(architecture)
    names = [name for name, _ in base.named_modules()]
    with pytest.raises(
        ValueError, match=r"has 2 layers, and `query_layer`=3 is the number of layers .* Set at most 2"
    ):
        get_peft_model(base, ListenConfig(query_layer=3))
    assert [name for name, _ in base.named_modules()] == names


def test_a_decoder_with_embeddings_of_another_size_raises(build):
    message = r"embeddings of OPTDecoder have size 16, its layers have size 32.*Set `query_layer=0`"
    with pytest.raises(ValueError, match=message):
        get_peft_model(build("opt-projected"), ListenConfig(query_layer=1))


def test_a_decoder_whose_layers_are_not_found_raises_with_its_name():
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4}
    model = AutoModelForCausalLM.from_config(LlamaConfig(num_hidden_layers=2, **sizes))
    model.config.num_hidden_layers = 3
    with pytest.raises(ValueError, match=r"found no decoder layers in LlamaModel"):
        get_peft_model(model, ListenConfig(query_layer=1))


def test_a_decoder_that_skips_the_layer_raises(build, attach_text, tokens, monkeypatch):
    model = attach_text(build(), query_layer=2)
    monkeypatch.setattr(model.get_base_model().model.config, "num_hidden_layers", 1)
    with pytest.raises(RuntimeError, match=r"LlamaModel did not run its layer 2"):
        model(tokens())
