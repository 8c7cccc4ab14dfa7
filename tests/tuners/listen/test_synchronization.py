"""
The adapter does not wait for the device: reads of tensors into Python, as a dispatch mode counts them on the CPU.

On a GPU each of these reads waits until the device has computed everything before it. The tests marked `gpu` repeat this
with CUDA's own check, which also finds copies between devices.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peft_listen.tuners.listen import pool
from peft_listen.tuners.listen.selectors import pursuit
from tests.small_models import LISTEN_VARIANTS


pytestmark = pytest.mark.cpu_only("a dispatch mode counts the reads there; CUDA's own check is in tests/gpu")

# Operators whose result is a Python value, or has a shape that depends on values.
READS = {
    "aten::_local_scalar_dense",
    "aten::equal",
    "aten::is_nonzero",
    "aten::nonzero",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
}


class ReadCounter(TorchDispatchMode):
    """Counts the operators of `READS`."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func._schema.name in READS
        return func(*args, **(kwargs or {}))


def count_reads(call):
    with ReadCounter() as counter:
        call()
    return counter.count


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    # What is read because reading is free on the CPU is not counted.
    for module in (pool, pursuit):
        monkeypatch.setattr(module, "reading_is_free", lambda device: False)


@pytest.fixture(params=LISTEN_VARIANTS)
def changes(request):
    return LISTEN_VARIANTS[request.param]


def with_mask(input_ids):
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


@torch.no_grad()
@pytest.mark.parametrize("has_mask", [True, False])
def test_a_decoding_step_reads_as_often_as_that_of_the_base_model(changes, has_mask, build, attach, tokens):
    def decoding_step(model):
        input_ids = tokens()
        mask = torch.ones_like(input_ids)
        cache = model(input_ids=input_ids, attention_mask=mask, use_cache=True).past_key_values
        inputs = {"attention_mask": torch.ones(2, 7, dtype=torch.long)} if has_mask else {}
        return count_reads(lambda: model(input_ids=input_ids[:, :1], past_key_values=cache, **inputs))

    base = build()
    assert decoding_step(attach(base, **changes)) == decoding_step(base)


@torch.no_grad()
def test_generation_reads_once_more_than_that_of_the_base_model(changes, build, attach, tokens):
    """Once in the prefill: `check_supported` finds packed sequences by their positions."""
    base = build()
    model = attach(base, **changes)
    inputs = with_mask(tokens())
    model.generate(**inputs, max_new_tokens=1)  # the first call checks the pool
    for new_tokens in (1, 5):
        settings = {"max_new_tokens": new_tokens, "do_sample": False}
        own = count_reads(lambda settings=settings: model.generate(**inputs, **settings))
        assert own - count_reads(lambda settings=settings: base.generate(**inputs, **settings)) <= 1


@torch.no_grad()
def test_a_prefill_reads_once_at_most(changes, build, attach, tokens):
    base = build()
    model = attach(base, **changes)
    positions = {"position_ids": torch.arange(6).expand(2, -1)}
    model(**with_mask(tokens()))  # the first call checks the pool
    for inputs in (with_mask(tokens()), {"input_ids": tokens()}, {**with_mask(tokens()), **positions}):
        own = count_reads(lambda inputs=inputs: model(**inputs))
        assert own - count_reads(lambda inputs=inputs: base(**inputs)) <= 1
    model.base_model.layer.hooks._calls_to_check_for_padding = 0  # as after the first calls without a mask
    own = count_reads(lambda: model(input_ids=tokens()))
    assert own == count_reads(lambda: base(input_ids=tokens()))


def test_a_training_step_reads_as_often_as_that_of_the_base_model(changes, build, attach, tokens):
    """After the first steps, which check the labels and find the optimizer."""

    def training_step(model, num_first_steps):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        inputs = with_mask(tokens())
        labels = inputs["input_ids"].masked_fill(torch.arange(6) < 3, -100)

        def step():
            model(**inputs, labels=labels, num_items_in_batch=torch.tensor(6)).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        for _ in range(num_first_steps):
            step()
        return count_reads(step)

    base = build()
    model = attach(base, **changes).train()
    first_steps = model.base_model.layer.pool_of()._batches_to_check + 1
    assert training_step(model, first_steps) == training_step(base.train(), 1)
