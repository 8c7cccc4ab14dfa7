"""The worker alone: batches, their order, and errors of one of their requests."""

import threading
import time
import weakref

import pytest
import torch
from transformers import GenerationConfig, pipeline

from peft_listen.answer_end import find_answer_end
from peft_listen.serving import ServedModels
from peft_listen.serving.worker import Finished, Group, Job, Worker
from tests.serving.conftest import MODEL


class Request:
    """A job, and what the worker sends for it."""

    def __init__(self, row, group=None, length=3, seconds=60.0, **settings):
        self.events, self.ended = [], threading.Event()
        deadline = time.monotonic() + seconds
        self.job = Job(row, group or Group(MODEL), deadline, self.receive, length, **settings)

    def receive(self, event):
        self.events.append(event)
        if not isinstance(event, str):
            self.ended.set()

    @property
    def result(self):
        assert self.ended.wait(60)
        return self.events[-1]


@pytest.fixture
def row(chat_pipe, clips):
    def row(clip=0, question="What?"):
        return chat_pipe.preprocess({"audio": clips[clip], "text": question})

    return row


@pytest.fixture
def worker(models):
    worker = Worker(models, batch_size=3)
    yield worker
    worker.stop()


@pytest.fixture
def batches(chat_pipe, monkeypatch):
    """Sizes of the batches that the model gets."""
    sizes = []
    generate = chat_pipe.model.generate

    def counted(**inputs):
        sizes.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(chat_pipe.model, "generate", counted)
    return sizes


def test_waiting_requests_of_a_group_are_answered_at_once(worker, row, batches):
    other = Group(MODEL, temperature=1.0)
    requests = [Request(row(), group) for group in (None, other, None, None, other, None)]
    for request in requests:
        worker.submit(request.job)
    worker.start()
    assert all(isinstance(request.result, Finished) for request in requests)
    # The request that has waited longest comes first, with up to two others of its group.
    assert batches == [3, 2, 1]


def test_a_seed_gives_the_same_answer_beside_others(worker, row, batches):
    groups = [Group(MODEL, 2.0, seed=1), Group(MODEL, 2.0, seed=1), Group(MODEL, 0, seed=1), Group(MODEL, 0, seed=1)]
    requests = [Request(row(), group, length=8) for group in groups]
    for request in requests:
        worker.submit(request.job)
    worker.start()
    sampled, again, greedy, _ = [request.result.text for request in requests]
    assert sampled == again != greedy
    assert batches == [1, 1, 2]


def test_a_request_that_asks_for_sampling_samples_from_the_whole_vocabulary(row, chat_pipe):
    # Each of these leaves one token.
    cut = {"top_k": 1, "min_p": 0.99, "top_h": 1e-6, "typical_p": 1e-6, "epsilon_cutoff": 0.9}
    settings = GenerationConfig(do_sample=True, **cut)
    same = {"model": chat_pipe.model, "processor": chat_pipe.processor, "device": chat_pipe.device}
    own = ServedModels(pipeline("audio-text-to-text", **same, generation_config=settings), MODEL)
    worker = Worker(own, batch_size=1)
    groups = [Group(MODEL, 2.0, seed=0), Group(MODEL, 2.0, seed=1), Group(MODEL, top_p=0.999, seed=2)]
    groups += [Group(MODEL, seed=0), Group(MODEL, seed=1)]
    requests = [Request(row(), group, length=4) for group in groups]
    for request in requests:
        worker.submit(request.job)
    worker.start()
    try:
        *sampled, first, second = [request.result.text for request in requests]
    finally:
        worker.stop()
    assert len({*sampled, first}) == 4
    # Without such a request, the model's own settings leave one token.
    assert first == second


def test_a_request_that_fails_does_not_affect_the_others(worker, row, chat_pipe):
    broken = row()
    broken["prompt"] += chat_pipe.processor.audio_token  # one placeholder too many
    requests = [Request(row(1)), Request(broken), Request(row(2))]
    for request in requests:
        worker.submit(request.job)
    worker.start()
    assert requests[1].result.status == 400 and "does not accept these messages" in requests[1].result.message
    for number in (0, 2):
        alone = Request(row(number // 2 + 1))
        worker.submit(alone.job)
        assert requests[number].result == alone.result


def test_the_tensors_of_a_batch_that_failed_are_freed_before_its_requests_are_tried_alone(
    worker, row, chat_pipe, monkeypatch
):
    forward, tensors, are_freed = chat_pipe.forward, [], []

    def too_large(batch, **settings):
        if len(batch["chat"]) == 1:
            are_freed.append([tensor() is None for tensor in tensors])
            return forward(batch, **settings)
        activations = torch.zeros(1)
        tensors.extend([weakref.ref(activations), weakref.ref(batch["model_inputs"]["input_ids"])])
        raise RuntimeError("out of memory")

    monkeypatch.setattr(chat_pipe, "forward", too_large)
    requests = [Request(row()), Request(row())]
    for request in requests:
        worker.submit(request.job)
    worker.start()
    assert all(isinstance(request.result, Finished) for request in requests)
    assert are_freed == [[True, True]] * 2


def test_requests_end_on_their_own_in_a_batch(worker, row, batches):
    lengths = (1, 4, 2)
    requests = [Request(row(index), length=length) for index, length in enumerate(lengths)]
    for request in requests:
        worker.submit(request.job)
    worker.start()
    assert [request.result.num_new_tokens for request in requests] == list(lengths)
    assert batches == [3]


def test_requests_that_are_given_up_are_not_answered(worker, row, batches):
    late, left, good = Request(row(), seconds=-1.0), Request(row()), Request(row())
    for request in (late, left, good):
        worker.submit(request.job)
    left.job.cancel()
    worker.start()
    assert (late.result.status, left.result.status) == (504, 499)
    assert isinstance(good.result, Finished) and batches == [1]


def test_a_stopped_worker_gives_everybody_a_result(models, row):
    worker = Worker(models, batch_size=1)
    running, waiting = Request(row(), length=2000, is_streamed=True), Request(row())
    worker.submit(running.job)
    worker.submit(waiting.job)
    worker.start()
    while not running.events:
        time.sleep(0.01)
    worker.stop()
    late = Request(row())
    worker.submit(late.job)
    for request in (running, waiting, late):
        assert request.result.status == 503 and request.result.is_temporary
        assert sum(not isinstance(event, str) for event in request.events) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, None),
        ({"eos_token_id": 7}, [7]),
        ({"eos_token_id": [7, 9]}, [7, 9]),
        ({"generation_config": GenerationConfig(eos_token_id=9, max_new_tokens=4)}, [9]),
    ],
)
def test_answers_end_at_the_tokens_of_the_pipeline(given, expected, chat_pipe, row, monkeypatch):
    same = {"model": chat_pipe.model, "processor": chat_pipe.processor, "device": chat_pipe.device}
    pipe = pipeline("audio-text-to-text", **same, **given)
    expected = expected or [find_answer_end(pipe.processor).token_id]
    assert pipe.end_token_ids == expected
    stops, generate = [], chat_pipe.model.generate

    def recorded(**inputs):
        stops.append(inputs["eos_token_id"])
        return generate(**inputs)

    monkeypatch.setattr(chat_pipe.model, "generate", recorded)
    worker = Worker(ServedModels(pipe, MODEL), batch_size=1)
    worker.start()
    try:
        request = Request(row())
        worker.submit(request.job)
        assert isinstance(request.result, Finished)
    finally:
        worker.stop()
    assert stops == [expected]
