"""The time that runs will take, from 20 steps of each kind of run."""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from .evaluation import Evaluator
from .material import Material, adapt
from .planning import PlannedRun
from .training import first_of_each_task, make_trainer, read_split


WARM_UP_STEPS, TIMED_STEPS = 5, 20


class StepTimer(TrainerCallback):
    """Measures the time between two steps, in `seconds`."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.seconds = first, last, 0.0

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in (self.first, self.last):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            sign = -1 if state.global_step == self.first else 1
            self.seconds += sign * time.perf_counter()


def estimate(
    planned: list[PlannedRun],
    material: Material,
    device: str,
    evaluation_batch_size: int,
    steps: int = TIMED_STEPS,
) -> str:
    """
    Times and prints some steps of each kind of run, and the answers to one batch of each task for the first kind.

    Args:
        planned (`list[PlannedRun]`): the runs. Those that differ in seed, rate, tasks or number of steps are of one kind.
        material ([`Material`]): what all runs share.
        device (`str`): `"cpu"` or `"cuda"`.
        evaluation_batch_size (`int`): clips per batch outside training.
        steps (`int`, defaults to 20): steps to time, after five others.

    Returns:
        `str`: the hours that all runs take one after another. Runs at the same time slow each other down.
    """
    per_step: dict[str, float] = {}
    evaluation = 0.0
    for one in planned:
        kind = _kind(one)
        if kind in per_step:
            continue
        settings = replace(one.settings, steps=WARM_UP_STEPS + steps)
        adapted, collator = adapt(settings, material, device)
        timer = StepTimer(WARM_UP_STEPS, settings.steps)
        adapted.callbacks.append(timer)
        examples = read_split(material.data_dir, "train", settings.tasks, settings.train_per_task)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        with tempfile.TemporaryDirectory() as folder:
            make_trainer(adapted, collator, examples, settings, Path(folder), device).train()
        per_step[kind] = timer.seconds / steps
        memory = f", {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device == "cuda" else ""
        print(f"{one.label}: {steps} steps in {timer.seconds:.1f} s{memory}", flush=True)
        if not evaluation and settings.test_per_task:
            adapted.model.to(device)
            evaluator = Evaluator(
                adapted.model, material.processor, collator, evaluation_batch_size, settings.precision
            )
            tasks, clips = settings.evaluated_tasks, min(evaluation_batch_size, settings.test_per_task)
            rows = first_of_each_task(material.test, tasks, clips)
            start = time.perf_counter()
            evaluator.answers(rows)
            evaluation = (time.perf_counter() - start) / len(rows) * settings.test_per_task
            print(f"answers to all test clips of a task, on average: {evaluation:.0f} s", flush=True)
    total = sum(
        one.settings.steps * per_step[_kind(one)]
        + evaluation * len(one.settings.evaluated_tasks) * bool(one.settings.test_per_task)
        for one in planned
    )
    return f"all {len(planned)} runs, one after another: about {total / 3600:.1f} hours"


def _kind(one: PlannedRun) -> str:
    settings = one.settings
    return json.dumps([settings.method, settings.options, settings.batch_size, settings.precision], sort_keys=True)
