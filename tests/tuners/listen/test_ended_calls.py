"""A call leaves nothing behind, whatever ends it, and calls inside `generate` are told from its own."""

import pytest
import torch
import transformers
from packaging.version import Version
from transformers import LogitsProcessor, LogitsProcessorList, StoppingCriteria, StoppingCriteriaList
from transformers.generation import BaseStreamer


GREEDY = {"max_new_tokens": 4, "do_sample": False}
STATIC = {"cache_implementation": "static", "disable_compile": True}


class Stop(BaseException):
    """An exception that is not an `Exception`."""


PLACES = {
    "embedding": lambda model: model.get_input_embeddings(),
    "layer": lambda model: model.model.layers[1],
    "head": lambda model: model.lm_head,
}


def raise_once(module, error):
    def hook(*args):
        handle.remove()
        raise error

    handle = module.register_forward_pre_hook(hook)


@torch.no_grad()
@pytest.mark.parametrize("called", ["language model", "backbone", "generate"])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, Stop, ValueError])
def test_a_call_ends_with_any_exception(error, place, called, build, attach, tokens):
    model = attach(build()).get_base_model()
    input_ids, other = tokens(2, 6), tokens(2, 6, seed=5)
    expected = model.model(input_ids=input_ids).last_hidden_state
    calls = {
        "language model": lambda: model(
            input_ids=other, labels=other, listen_query_mask=torch.eye(6)[:2].long(), num_items_in_batch=3
        ),
        "backbone": lambda: model.model(input_ids=other),
        "generate": lambda: model.generate(other, **GREEDY),
    }
    if (place, called) == ("head", "backbone"):
        place = "layer"
    raise_once(PLACES[place](model), error("ended"))
    with pytest.raises(error, match="ended") as kept:  # as a notebook does, which keeps the frames of the call
        calls[called]()
    assert torch.equal(model.model(input_ids=input_ids).last_hidden_state, expected)
    assert model.model.prompt_pool.thread.call is None
    assert kept.value.args == ("ended",)


@torch.no_grad()
def test_a_call_that_was_ended_does_not_change_one_without_adapter(build, attach, tokens):
    model = attach(build())
    base = model.get_base_model()
    with model.disable_adapter():
        expected = base.model(input_ids=tokens()).last_hidden_state
    raise_once(base.model.layers[1], KeyboardInterrupt("ended"))
    with pytest.raises(KeyboardInterrupt):
        base.model(input_ids=tokens())
    with model.disable_adapter():
        assert torch.equal(base.model(input_ids=tokens()).last_hidden_state, expected)


@torch.no_grad()
def test_an_ended_generation_leaves_a_static_cache_without_mark(build, attach, tokens):
    model = attach(build()).get_base_model()
    expected = model.generate(tokens(), **GREEDY, **STATIC)

    def stop(input_ids, scores):
        raise Stop

    with pytest.raises(Stop):
        model.generate(tokens(), **GREEDY, **STATIC, logits_processor=[stop])
    assert model.model.prompt_pool.thread.generate_call is None
    assert torch.equal(model.generate(tokens(), **GREEDY, **STATIC), expected)


class Caller(BaseStreamer, LogitsProcessor):
    """Calls the model on another input, and keeps its logits."""

    def __init__(self, call):
        self.call, self.logits = call, []

    def put(self, value):
        self.logits.append(self.call())

    def end(self):
        pass

    def __call__(self, input_ids, scores):
        self.logits.append(self.call())
        return scores


class Criterion(StoppingCriteria, Caller):
    __init__ = Caller.__init__

    def __call__(self, input_ids, scores, **kwargs):
        self.logits.append(self.call())
        return torch.zeros(len(input_ids), dtype=torch.bool)


CALLERS = {
    "streamer": lambda call: {"streamer": Caller(call)},
    "logits processor": lambda call: {"logits_processor": LogitsProcessorList([Caller(call)])},
    "stopping criterion": lambda call: {"stopping_criteria": StoppingCriteriaList([Criterion(call)])},
}
SETTINGS = {
    "dynamic": {},
    "static": STATIC,
    "uncached": {"use_cache": False},
    "chunked": {"prefill_chunk_size": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
}


@torch.no_grad()
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("same_input", [True, False])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("caller", CALLERS)
def test_a_call_inside_generate_is_not_taken_for_its_own(
    caller, settings, same_input, use_cache, build, attach, tokens
):
    model, settings = attach(build()), {**GREEDY, **SETTINGS[settings]}
    input_ids = tokens(1, 6)
    other = input_ids if same_input else tokens(1, 9, seed=7)
    query_mask = torch.tensor([[0, 0, 1, 1, 0, 0]])
    expected = model.generate(input_ids, **settings, listen_query_mask=query_mask)
    alone = model(input_ids=other).logits
    used = CALLERS[caller](lambda: model(input_ids=other, use_cache=use_cache).logits)
    found = model.generate(input_ids, **settings, listen_query_mask=query_mask, **used)
    assert torch.equal(found, expected)
    (value,) = used.values()
    logits = (value if caller == "streamer" else value[0]).logits
    assert len(logits) > 2
    for result in logits:
        torch.testing.assert_close(result, alone, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("settings", SETTINGS)
def test_generate_inside_generate_gets_its_own_prompts(settings, build, attach, tokens):
    if settings == "static" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("refused with an error: with transformers 5.14, the inner prefill does not prepare its inputs")
    model, settings = attach(build()), {**GREEDY, **SETTINGS[settings]}
    other = tokens(1, 9, seed=7)
    expected, alone = model.generate(tokens(1), **settings), model.generate(other, **settings)
    streamer = Caller(lambda: model.generate(other, **settings))
    assert torch.equal(model.generate(tokens(1), **settings, streamer=streamer), expected)
    assert streamer.logits and all(torch.equal(sequence, alone) for sequence in streamer.logits)


@torch.no_grad()
def test_a_generate_that_prepares_no_inputs_raises_with_a_static_cache(build, attach, tokens, monkeypatch):
    model = attach(build()).get_base_model()

    def generate(self, input_ids=None, **kwargs):
        return self(input_ids=input_ids, inputs_embeds=None).logits.argmax(dim=-1)

    monkeypatch.setattr(type(model), "generate", generate)
    model.generate(tokens())
    with pytest.raises(RuntimeError, match=r"did not call `prepare_inputs_for_generation`"):
        model.generate(tokens(), **STATIC)


def test_the_wrapped_method_is_restored(build, attach):
    model = attach(build())
    base = model.get_base_model()
    assert "prepare_inputs_for_generation" in base.__dict__
    model.unload()
    assert "prepare_inputs_for_generation" not in base.__dict__
