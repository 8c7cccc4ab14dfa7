"""
The adapter does not wait for the device, by CUDA's own check.

It finds copies between devices too, which `tests/tuners/listen/test_synchronization.py` does not.
"""

import warnings

import pytest
import torch

from tests.small_models import LISTEN_VARIANTS, make_clip, make_model, make_processor


pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("needs_cuda")]


@pytest.fixture(params=LISTEN_VARIANTS)
def changes(request):
    return LISTEN_VARIANTS[request.param]


@pytest.fixture
def strict(monkeypatch):
    """Makes every hook of a model raise an error if it waits for the device."""

    def strict(model):
        hooks = model.base_model.layer.hooks
        for name in ("_begin_call", "_add_prompts", "_strip", "_end_call"):
            monkeypatch.setattr(hooks, name, without_waiting(getattr(hooks, name)))

    return strict


def without_waiting(function):
    def checked(*args):
        torch.cuda.set_sync_debug_mode("error")
        try:
            return function(*args)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    return checked


def count_waits(call):
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)


def with_mask(input_ids):
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def test_the_check_finds_a_read_and_a_copy(device):
    ones = torch.ones(2, device=device)
    assert count_waits(lambda: bool(ones.any())) >= 1
    assert count_waits(lambda: torch.tensor([1, 2], device=device)) >= 1
    with pytest.raises(RuntimeError, match="synchronizing"):
        without_waiting(lambda: bool(ones.any()))()


@torch.no_grad()
def test_a_prefill_and_a_decoding_step(changes, make_pair, tokens, strict, device):
    base, model = make_pair(**changes)
    inputs, more = with_mask(tokens()), torch.ones(2, 8, dtype=torch.long, device=device)
    model(**inputs)  # the first call checks the pool

    def prefill(model):
        return model(**inputs, use_cache=True).past_key_values

    assert count_waits(lambda: prefill(model)) <= count_waits(lambda: prefill(base)) + 1
    waits = []
    for called in (base, model):
        cache = prefill(called)
        step = {"input_ids": inputs["input_ids"][:, :1], "attention_mask": more, "past_key_values": cache}
        waits.append(count_waits(lambda called=called, step=step: called(**step)))
    assert waits[1] == waits[0]
    strict(model)
    model(input_ids=inputs["input_ids"][:, :1], attention_mask=more, past_key_values=prefill(model))


@torch.no_grad()
def test_generation_waits_once_more_than_that_of_the_base_model(changes, make_pair, tokens):
    base, model = make_pair(**changes)
    inputs = with_mask(tokens())
    model.generate(**inputs, max_new_tokens=2, do_sample=False)
    for new_tokens in (1, 6):
        settings = {"max_new_tokens": new_tokens, "do_sample": False}
        own = count_waits(lambda settings=settings: model.generate(**inputs, **settings))
        assert own - count_waits(lambda settings=settings: base.generate(**inputs, **settings)) <= 1


@torch.no_grad()
def test_whisper_waits_once_for_the_lengths_of_all_chunks(device):
    model = make_model(speech_chunk_multiple=2, encoder_batch_size=1).to(device)
    clips = [make_clip(seconds) for seconds in (1.0, 31.0, 3.0, 0.4)]
    inputs = make_processor(speech_chunk_multiple=2)(audio=clips, sampling_rate=16000).to(device)
    model.get_encoder_features(**inputs)
    assert count_waits(lambda: model.get_encoder_features(**inputs)) == 1


@pytest.mark.parametrize("fused", [False, True])
def test_a_training_step(fused, changes, make_pair, tokens, strict, device):
    base, model = make_pair(**changes)
    base.get_input_embeddings().requires_grad_(False)  # as the adapter freezes them

    def make_step(model):
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-3, fused=fused)
        inputs = with_mask(tokens())
        labels = inputs["input_ids"].masked_fill(torch.arange(7, device=device) < 3, -100)

        def step():
            model(**inputs, labels=labels).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    step, base_step = make_step(model.train()), make_step(base.train())
    for _ in range(model.base_model.layer.pool_of()._batches_to_check + 1):
        step()
    base_step()
    assert count_waits(step) == count_waits(base_step)
    strict(model)
    step()
