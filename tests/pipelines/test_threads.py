"""Several threads call one pipeline at once, and each gets the answer that it gets alone."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from threading import Barrier

import pytest
import torch
from transformers import pipeline

from peft_listen import AudioListenProcessor, ListenConfig
from tests import simulated_device
from tests.device import test_device


THREADS = 8
CALLS = 4 if test_device().type == simulated_device.NAME else 20  # there, each operation takes longer
QUESTIONS = ["What do you hear?", "Is it loud?", "Which animal is it?"]
GREEDY = {"max_new_tokens": 4, "do_sample": False}


@pytest.fixture
def pipe(make_adapted, composite_folder):
    model = make_adapted("listen")
    model.add_adapter("other", ListenConfig(pool_size=9, prompt_length=5, init_weights=False, seed=3))
    processor = AudioListenProcessor.from_pretrained(composite_folder)
    return pipeline("audio-text-to-text", model=model, processor=processor)


def run_in_threads(calls):
    barrier = Barrier(THREADS)

    def worker(number):
        barrier.wait()
        return [call() for call in calls[number::THREADS]]

    with ThreadPoolExecutor(THREADS) as pool:
        results = list(pool.map(worker, range(THREADS)))
    return [results[index % THREADS][index // THREADS] for index in range(len(calls))]


def answer(pipe, clip, question, **settings):
    return pipe(clip, text=question, **GREEDY, **settings)[0]["generated_text"]


def loss_of(pipe, clip, question):
    inputs = pipe.processor(text=f"{pipe.processor.audio_token} {question}", audio=clip)
    with torch.no_grad():
        return float(pipe.model(**inputs, labels=inputs["input_ids"]).loss)


def test_each_thread_gets_the_answer_that_it_gets_alone(pipe, clips):
    calls = []
    for index in range(THREADS * CALLS):
        clip, question = clips[index % len(clips)], QUESTIONS[index % len(QUESTIONS)]
        if index % 4 == 3:
            calls.append(partial(loss_of, pipe, clip, question))
        else:
            calls.append(partial(answer, pipe, clip, question, num_beams=1 + index % 2))
    half = len(calls) // 2
    for adapter, own in (("default", calls[:half]), ("other", calls[half:])):  # switched while no call runs
        pipe.model.set_adapter(adapter)
        alone, together = [call() for call in own], run_in_threads(own)
        for expected, found in zip(alone, together, strict=True):
            assert found == (pytest.approx(expected, rel=1e-4) if isinstance(expected, float) else expected)
