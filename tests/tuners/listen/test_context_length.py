"""The position limit, heads other than language modeling, additional calls of the model in `generate`, and inputs without tokens."""

import copy
import warnings

import pytest
import torch
import transformers
from accelerate import cpu_offload, disk_offload
from peft import get_peft_model
from transformers import LogitsProcessor, LogitsProcessorList

from peft_listen import ListenConfig
from tests.device import place, test_device


GREEDY = {"max_new_tokens": 5, "do_sample": False}
STATIC = {"cache_implementation": "static", "disable_compile": True}
LEARNED = ["gpt2", "opt"]
ROTARY = ["llama", "gpt-neox", "phi"]


def supervised(input_ids, prompt=3):
    return input_ids.masked_fill(torch.arange(input_ids.shape[1]) < prompt, -100)


@pytest.fixture
def short(build, attach):
    """A model with 16 positions."""

    def short(architecture, **changes):
        name = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
        return attach(build(architecture, **{name: 16}), **changes)

    return short


# ------------------------------------------------------------------------------------------------------------- positions


@pytest.mark.parametrize("architecture", LEARNED)
def test_too_many_positions_raise_an_error_with_all_three_numbers(architecture, short, tokens):
    model = short(architecture)
    assert model(input_ids=tokens(2, 12)).logits.shape[1] == 12
    message = r"14 tokens and 4 prompts, which are 18 positions, but the model has 16"
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens(2, 14))
    with pytest.raises(ValueError, match=message):
        model(input_ids=tokens(2, 14), attention_mask=torch.ones(2, 14))
    trained = short(architecture, stochastic_prompt_length=False).train()
    with pytest.raises(ValueError, match=message):
        trained(input_ids=tokens(2, 14), labels=supervised(tokens(2, 14)))
    with pytest.raises(ValueError, match=message):
        model.generate(tokens(1, 14), **GREEDY, **STATIC)


@pytest.mark.parametrize("architecture", LEARNED)
def test_padding_does_not_count_as_positions(architecture, short, padded, tokens):
    model = short(architecture)
    batch = padded([tokens(1, 12)[0], tokens(1, 5)[0]], "left")
    batch = {name: torch.nn.functional.pad(value, (3, 0)) for name, value in batch.items()}
    assert model(**batch).logits.isfinite().all()


@pytest.mark.parametrize("architecture", ROTARY)
def test_too_many_rotary_positions_give_one_warning(architecture, short, tokens):
    model = short(architecture)
    with pytest.warns(UserWarning, match=r"14 tokens and 4 prompts, which are 18 positions, but the model has 16"):
        model(input_ids=tokens(2, 14))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=tokens(2, 14))


@pytest.mark.parametrize("settings", [{}, STATIC])
@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_generation_that_may_be_too_long_gives_a_warning_before_it_starts(architecture, settings, short, tokens):
    model = short(architecture)
    with pytest.warns(UserWarning, match=r"10 tokens, 4 prompts and up to 5 new tokens are 19 positions"):
        try:
            model.generate(tokens(1, 10), **GREEDY, **settings)
        except (ValueError, IndexError):
            assert architecture == "gpt2"


@pytest.mark.parametrize("architecture", ["bloom", "llama", "gpt2", "mistral", "gemma2"])
def test_inputs_that_fit_give_no_warning(architecture, build, attach, tokens):
    model = attach(build(architecture))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*positions.*")
        model.generate(tokens(), **GREEDY)


# ------------------------------------------------------------------------------------------------------- other heads

HEADS = {
    "sequence": (transformers.LlamaForSequenceClassification, lambda ids: {"labels": torch.tensor([0, 1])}),
    "token": (transformers.LlamaForTokenClassification, lambda ids: {"labels": (ids > 20).long()}),
    "question": (
        transformers.LlamaForQuestionAnswering,
        lambda ids: {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 3])},
    ),
}


@pytest.mark.parametrize("head", HEADS)
def test_a_classification_head_uses_the_whole_input_as_the_query(head, build, tokens):
    cls, targets = HEADS[head]
    config = build().config
    config.num_labels, config.pad_token_id, config.classifier_dropout = 2, 0, 0.0
    torch.manual_seed(0)
    base = place(cls(config).eval())
    settings = {"pool_size": 12, "prompt_length": 4, "init_weights": False, "center_queries": False}
    model = get_peft_model(base, ListenConfig(**settings, stochastic_prompt_length=False, key_loss_weight=0.3))
    input_ids = tokens()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        evaluated = model.eval()(input_ids=input_ids, **targets(input_ids)).loss
        query = model.base_model.last_selection.query
        output = model.train()(input_ids=input_ids, **targets(input_ids))
    embeds = model.get_input_embeddings()(input_ids)
    torch.testing.assert_close(query, embeds.mean(dim=1))
    torch.testing.assert_close(model.base_model.last_selection.query, embeds.mean(dim=1))
    torch.testing.assert_close(output.loss, evaluated + 0.3 * model.base_model.key_loss, atol=1e-5, rtol=1e-5)
    output.loss.backward()
    assert model.base_model.layer.pool_of().keys.grad.abs().max() > 0


@pytest.mark.parametrize("shape", [(2,), (2, 5), (1, 6), (2, 6, 1)])
def test_labels_that_are_not_one_per_token_raise(shape, build, attach, tokens):
    model = attach(build()).train()
    with pytest.raises(
        ValueError, match=r"`labels` must have one entry per token, in the shape of the input, \(2, 6\)"
    ):
        model(input_ids=tokens(), labels=torch.ones(shape, dtype=torch.long))


# ------------------------------------------------------------------------------- additional calls of the model in generate


class CallsTheModel(LogitsProcessor):
    """Calls the model on another input, as classifier-free guidance does, and keeps its logits."""

    def __init__(self, model, input_ids, use_cache):
        self.model, self.input_ids, self.use_cache, self.logits = model, input_ids, use_cache, []

    def __call__(self, input_ids, scores):
        self.logits.append(self.model(input_ids=self.input_ids, use_cache=self.use_cache).logits)
        return scores


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("settings", [{}, STATIC, {"use_cache": False}], ids=["dynamic", "static", "uncached"])
def test_another_input_gets_its_own_prompts(settings, use_cache, build, attach, tokens):
    model = attach(build())
    input_ids, other = tokens(2, 6), tokens(2, 9, seed=7)
    expected, alone = model.generate(input_ids, **GREEDY, **settings), model(input_ids=other).logits
    processor = CallsTheModel(model, other, use_cache)
    processors = LogitsProcessorList([processor])
    assert torch.equal(model.generate(input_ids, **GREEDY, **settings, logits_processor=processors), expected)
    assert len(processor.logits) == 5
    for logits in processor.logits:
        torch.testing.assert_close(logits, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, STATIC], ids=["dynamic", "static"])
def test_guidance_compares_with_the_negative_prompt_and_its_prompts(settings, build, attach, tokens):
    model = attach(build())
    input_ids, negative = tokens(1, 6), tokens(1, 6, seed=7)
    found = model.generate(input_ids, **GREEDY, **settings, guidance_scale=1.7, negative_prompt_ids=negative)
    row, other = input_ids, negative
    query_mask = torch.ones(1, 6)
    for _ in range(5):
        pad = (0, row.shape[1] - 6)
        scores = [
            model(input_ids=ids, listen_query_mask=torch.nn.functional.pad(query_mask, pad))
            .logits[:, -1]
            .log_softmax(dim=-1)
            for ids in (row, other)
        ]
        token = (1.7 * (scores[0] - scores[1]) + scores[1]).argmax(dim=-1, keepdim=True)
        row, other = torch.cat([row, token], dim=1), torch.cat([other, token], dim=1)
    assert torch.equal(found, row)


# ------------------------------------------------------------------------------------------------------------- offloading


@torch.no_grad()
@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_an_adapted_model_can_be_offloaded(where, build, attach, tokens, tmp_path):
    model = attach(build(), center_queries=True, num_shared_prompts=2)
    expected = model(tokens()).logits
    sequences = model.generate(tokens(), **GREEDY)
    offloaded = copy.deepcopy(model)
    if where == "cpu":
        cpu_offload(offloaded, execution_device=test_device())
    else:
        disk_offload(offloaded, str(tmp_path), execution_device=test_device())
    assert all(parameter.is_meta for parameter in offloaded.base_model.layer.pool_of().parameters())
    assert torch.equal(offloaded(tokens()).logits, expected)
    assert torch.equal(offloaded.generate(tokens(), **GREEDY), sequences)


# ------------------------------------------------------------------------------------------------------ without tokens


@pytest.mark.parametrize("inputs", [{}, {"input_ids": None}, {"attention_mask": torch.ones(1, 2)}])
def test_a_call_without_input_raises(inputs, build, attach):
    with pytest.raises(ValueError, match=r"`input_ids`.*`inputs_embeds`|input_ids or inputs_embeds"):
        attach(build())(**inputs)


@pytest.mark.parametrize("shape", [(0, 6), (2, 0), (0, 0)])
def test_a_batch_without_tokens_raises(shape, build, attach):
    with pytest.raises(ValueError, match=r"no token|input_ids or inputs_embeds"):
        attach(build())(input_ids=torch.ones(shape, dtype=torch.long))


# -------------------------------------------------------------------------------------------------- evaluation harnesses


def test_padding_in_the_query_gives_one_warning(build, attach, padded, tokens):
    model = attach(build())
    batch = padded([tokens(1, 8)[0], tokens(1, 5)[0]], "right")
    with pytest.warns(UserWarning, match=r"ends with padding.*`attention_mask`.*`listen_query_mask`"):
        model(input_ids=batch["input_ids"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=batch["input_ids"])


def test_correct_calls_give_no_warning(build, attach, padded, tokens):
    model = attach(build())
    batch = padded([tokens(1, 8)[0], tokens(1, 5)[0]], "right")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(**batch)
        model(input_ids=tokens())
        model(input_ids=batch["input_ids"], listen_query_mask=batch["attention_mask"])
        model(input_ids=batch["input_ids"], labels=batch["input_ids"])
        model.generate(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], **GREEDY)


@torch.no_grad()
def test_with_a_marked_context_padding_and_continuation_are_not_in_the_query(build, attach, padded, tokens):
    model = attach(build())
    contexts = [tokens(1, length, seed=length)[0] for length in (6, 4)]
    answers = [tokens(1, length, seed=20 + length)[0] for length in (3, 1)]
    rows = [torch.cat(pair) for pair in zip(contexts, answers, strict=True)]
    batch = padded(rows, "right")
    query_mask = padded([torch.ones(len(context), dtype=torch.long) for context in contexts], "right")["input_ids"]
    query_mask = torch.nn.functional.pad(query_mask, (0, batch["input_ids"].shape[1] - query_mask.shape[1]))
    logits = model(**batch, listen_query_mask=query_mask).logits
    for i, (row, context) in enumerate(zip(rows, contexts, strict=True)):
        labels = row.clone()
        labels[: len(context)] = -100
        alone = model(input_ids=row[None], labels=labels[None])
        torch.testing.assert_close(logits[i, : len(row)], alone.logits[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", LEARNED)
@pytest.mark.parametrize("settings", [{}, STATIC], ids=["dynamic", "static"])
@pytest.mark.parametrize("lengths", [{"max_new_tokens": 30}, {"max_length": 40}, {}], ids=["new", "total", "default"])
def test_with_learned_positions_a_generation_stops_where_they_end(lengths, settings, architecture, short, tokens):
    model = short(architecture)
    with pytest.warns(UserWarning, match=r"The generation stops after 7 new tokens"):
        sequences = model.generate(tokens(1, 6), do_sample=False, **lengths, **settings)
    assert sequences.shape == (1, 6 + 7)


@pytest.mark.parametrize("architecture", LEARNED)
def test_a_continued_generation_stops_where_they_end(architecture, short, tokens):
    model = short(architecture)
    cache = transformers.DynamicCache()
    first = model.generate(tokens(1, 5), max_new_tokens=2, do_sample=False, past_key_values=cache)
    more = torch.cat([first, tokens(1, 2, seed=5)], dim=1)
    with pytest.warns(UserWarning, match=r"The generation stops after 4 new tokens"):
        sequences = model.generate(more, max_new_tokens=30, do_sample=False, past_key_values=cache)
    assert sequences.shape == (1, 9 + 4)


@torch.no_grad()
@pytest.mark.parametrize("seed", range(4))
def test_guidance_with_a_static_cache_is_that_of_a_dynamic_one(seed, build, attach, tokens):
    model = attach(build())
    settings = {**GREEDY, "guidance_scale": 3.0, "negative_prompt_ids": tokens(1, 6, seed=20 + seed)}
    expected = model.generate(tokens(1, 6, seed=seed), **settings)
    assert torch.equal(model.generate(tokens(1, 6, seed=seed), **settings, **STATIC), expected)


def test_what_cannot_have_prompts_of_its_own_is_refused_by_name(build, attach, tokens):
    model = attach(build())
    with pytest.raises(ValueError, match=r"`guidance_scale` without a cache"):
        model.generate(tokens(1), **GREEDY, guidance_scale=2.0, use_cache=False)
    with pytest.raises(ValueError, match=r"`assistant_early_exit`"):
        model.generate(tokens(1), **GREEDY, assistant_early_exit=1)
