"""Several threads call one model at the same time, and each gets the same answer as alone."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch
import transformers
from packaging.version import Version

from peft_listen import ListenConfig
from tests import simulated_device
from tests.device import test_device


THREADS = 8
CALLS = 4 if test_device().type == simulated_device.NAME else 20  # there, each operation takes longer
GREEDY = {"max_new_tokens": 4, "do_sample": False}
STATIC = {"cache_implementation": "static", "disable_compile": True}


def forward(model, input_ids):
    return model(input_ids=input_ids).logits


def forward_with_labels(model, input_ids):
    return model(input_ids=input_ids, labels=input_ids).loss


def backbone_inputs(model, input_ids):
    return model(inputs_embeds=model.get_input_embeddings()(input_ids)).logits


def forward_of_a_named_query(model, input_ids):
    query_mask = torch.zeros_like(input_ids)
    query_mask[:, : input_ids.shape[1] // 2] = 1
    return model(input_ids=input_ids, listen_query_mask=query_mask).logits


def continued(model, input_ids):
    first = model(input_ids=input_ids[:, :-1], use_cache=True)
    return model(input_ids=input_ids[:, -1:], past_key_values=first.past_key_values).logits


def generate(**settings):
    return lambda model, input_ids: model.generate(input_ids, **GREEDY, **settings)


def with_another_length(model, input_ids):
    k = 1 + int(input_ids[0, 0]) % 7
    with model.base_model.use_prompt_length(k), model.base_model.record_selections() as records:
        logits = model(input_ids=input_ids).logits
    assert [record.indices.shape[1] for record in records] == [k]
    return logits


# Older versions of transformers keep one static cache on the model for all calls.
SHARES_STATIC_CACHE = Version(transformers.__version__) < Version("5.20")

CALLED = {
    "forward": forward,
    "labels": forward_with_labels,
    "embeddings": backbone_inputs,
    "query mask": forward_of_a_named_query,
    "cache": continued,
    "greedy": generate(),
    "beams": generate(num_beams=2),
    "without cache": generate(use_cache=False),
    **({} if SHARES_STATIC_CACHE else {"static cache": generate(**STATIC)}),
    "chunks": generate(prefill_chunk_size=3),
    "length": with_another_length,
}


def run_in_threads(calls):
    """Results of functions, each called in one of the threads; all threads start together."""
    barrier = threading.Barrier(THREADS)

    def worker(own):
        barrier.wait()
        return [call() for call in own]

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(worker, [calls[i::THREADS] for i in range(THREADS)]))
    flat = [None] * len(calls)
    for i, own in enumerate(results):
        flat[i::THREADS] = own
    return flat


@pytest.fixture
def two_adapters(build, attach):
    model = attach(build(), center_queries=True)
    settings = {"pool_size": 20, "prompt_length": 7, "init_weights": False, "seed": 5, "selector": "residual"}
    model.add_adapter("other", ListenConfig(**settings))
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("kind", ["all", *CALLED])
def test_each_thread_gets_the_same_answer_as_alone(kind, two_adapters, tokens):
    model, calls = two_adapters, []
    kinds, count = (list(CALLED), CALLS) if kind == "all" else ([kind], CALLS // 4)
    for i in range(THREADS * count):
        calls.append(partial(CALLED[kinds[i % len(kinds)]], model, tokens(1 + i % 3, 4 + i % 5, seed=i)))
    for adapter in ("default", "other"):  # switched while no call runs
        model.set_adapter(adapter)
        alone = [call() for call in calls]
        together = run_in_threads(calls)
        for expected, result in zip(alone, together, strict=True):
            torch.testing.assert_close(result, expected, atol=1e-5, rtol=1e-5)
    assert model.base_model.layer.thread.call is None


@torch.no_grad()
def test_results_of_the_last_call_belong_to_the_thread(two_adapters, tokens):
    model = two_adapters

    def own_selection(input_ids):
        for _ in range(5):
            model(input_ids=input_ids)
            query = model.base_model.last_selection.query
            torch.testing.assert_close(query, model.get_input_embeddings()(input_ids).mean(dim=1))
        return True

    calls = [partial(own_selection, tokens(seed=i)) for i in range(40)]
    assert all(run_in_threads(calls))
    assert model.base_model.last_selection is None  # this thread has made no call


@torch.no_grad()
def test_a_failed_call_does_not_affect_the_next_one(two_adapters, tokens):
    model, input_ids = two_adapters, tokens()
    expected = model(input_ids=input_ids).logits
    wrong = [
        lambda: model(input_ids=input_ids, listen_query_mask=torch.ones(1, 2)),
        lambda: model(input_ids=input_ids, seq_idx=input_ids),
        lambda: model(input_ids=input_ids, labels=input_ids[:, :2]),
        lambda: model.generate(input_ids, **GREEDY, listen_query_mask=torch.ones(1, 2)),
        lambda: model.generate(input_ids, **GREEDY, **STATIC, logits_processor=[lambda *_: 1 / 0]),
        lambda: model(),
        lambda: model(input_ids=input_ids[:, :0]),
    ]
    for call in wrong:
        with pytest.raises((ValueError, RuntimeError, ZeroDivisionError)):
            call()
        assert model.base_model.layer.thread.call is None
        assert model.base_model.layer.thread.generate_call is None
        assert torch.equal(model(input_ids=input_ids).logits, expected)


@torch.no_grad()
def test_a_static_cache_can_be_used_after_its_generation(two_adapters, tokens):
    model, input_ids = two_adapters, tokens()
    settings = {**GREEDY, **STATIC, "return_dict_in_generate": True, "max_cache_len": 40}
    output = model.generate(input_ids, **settings)
    more = torch.cat([output.sequences, tokens(2, 3, seed=9)], dim=1)
    query_mask = torch.zeros_like(more)
    query_mask[:, :6] = 1
    expected = model(input_ids=more, listen_query_mask=query_mask).logits[:, -1]
    cached = int(output.past_key_values.get_seq_length()) - 4
    logits = model(
        input_ids=more[:, cached:], attention_mask=torch.ones_like(more), past_key_values=output.past_key_values
    ).logits[:, -1]
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_data_parallel_raises_with_its_name(two_adapters, tokens):
    replica = two_adapters.get_base_model()._replicate_for_data_parallel()
    with pytest.raises(ValueError, match=r"`torch.nn.DataParallel`.*DistributedDataParallel"):
        replica(input_ids=tokens())
