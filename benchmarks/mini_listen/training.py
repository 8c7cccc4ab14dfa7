"""Training of one run: the HF Trainer on the mixture of tasks, resumable."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup
from transformers.trainer_utils import get_last_checkpoint

from peft_listen.data import read_examples
from peft_listen.training import AudioListenCollator, FeatureCache, parameter_groups

from .methods import Adapted
from .settings import RunSettings


WARM_UP_SHARE = 0.05


def read_split(
    data_dir: Path, split: str, tasks: tuple[str, ...], per_task: int | None = None
) -> list[dict[str, Any]]:
    """Examples of some tasks of a split, the first `per_task` of each, in the file's order."""
    return first_of_each_task(map(dict, read_examples(data_dir / f"{split}.jsonl")), tasks, per_task)


def first_of_each_task(
    examples: Iterable[dict[str, Any]], tasks: tuple[str, ...], per_task: int | None
) -> list[dict[str, Any]]:
    """The first `per_task` examples of each of some tasks, or all of them, in their order."""
    counts = dict.fromkeys(tasks, 0)
    chosen = []
    for example in examples:
        task = example["task"]
        if task in counts and (per_task is None or counts[task] < per_task):
            counts[task] += 1
            chosen.append(example)
    return chosen


def mixture(examples: list[dict[str, Any]], batch_size: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """
    A stream of examples in which every task comes equally often: tasks take turns, each in an order of its own that is
    drawn anew for every pass. All methods with one seed see the same batches.
    """
    by_task: dict[str, list[dict[str, Any]]] = {}
    for example in examples:
        by_task.setdefault(example["task"], []).append(example)
    tasks = sorted(by_task)
    generator = random.Random(f"mixture:{seed}")
    queues: dict[str, list[dict[str, Any]]] = {task: [] for task in tasks}
    stream = []
    while len(stream) < batch_size * steps:
        generator.shuffle(tasks)
        for task in tasks:
            if not queues[task]:
                queues[task] = generator.sample(by_task[task], len(by_task[task]))
            stream.append(queues[task].pop())
    return stream[: batch_size * steps]


class StreamTrainer(Trainer):
    """A Trainer that takes its examples in the order in which they come."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(
    adapted: Adapted,
    collator: AudioListenCollator,
    examples: list[dict[str, Any]],
    settings: RunSettings,
    work_dir: Path,
) -> list[dict[str, Any]]:
    """
    Trains a method's model, from the last checkpoint in `work_dir` if there is one.

    Returns:
        The Trainer's log history.
    """
    groups = parameter_groups(
        adapted.model,
        settings.learning_rate,
        value_learning_rate=adapted.value_rate * settings.value_learning_rate,
        shared_value_learning_rate=settings.value_learning_rate,
    )
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARM_UP_SHARE * settings.steps), settings.steps)
    trainer = StreamTrainer(
        adapted.model,
        TrainingArguments(
            str(work_dir),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            logging_steps=10,
            save_steps=100,
            save_total_limit=1,
            remove_unused_columns=False,
            report_to=[],
            seed=settings.seed,
        ),
        train_dataset=mixture(examples, settings.batch_size, settings.steps, settings.seed),
        data_collator=collator,
        optimizers=(optimizer, schedule),
        callbacks=list(adapted.callbacks),
    )
    work_dir.mkdir(parents=True, exist_ok=True)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(str(work_dir)))
    return trainer.state.log_history


def build_features(model: Any, processor: Any, examples: list[dict[str, Any]], folder: Path) -> FeatureCache:
    """What the frozen encoders make of the clips of some examples, on disk."""
    cache = FeatureCache(folder, model)
    cache.build(model, processor, [example["audio"] for example in examples])
    return cache
