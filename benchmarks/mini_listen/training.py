"""Training of one run: a resumable Trainer on a balanced mixture of the tasks."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_cosine_schedule_with_warmup
from transformers.trainer_utils import get_last_checkpoint

from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.training import AudioListenCollator, FeatureCache, parameter_groups

from .instructions import with_drawn_wordings
from .methods import Adapted
from .settings import RunSettings


WARM_UP_SHARE = 0.05

_LAST_LAYER = re.compile(r"multi_modal_projector\.(modules_to_save\.\w+\.)?linear\.")
_LAST_LAYER_RATE = 0.2


def read_split(
    data_dir: Path, split: str, tasks: tuple[str, ...], per_task: int | None = None
) -> list[dict[str, Any]]:
    """
    Reads examples of a split.

    Args:
        data_dir (`Path`): folder of the dataset.
        split (`str`): name of the split.
        tasks (`tuple[str, ...]`): tasks to read.
        per_task (`int`, *optional*): number of examples per task, from the beginning of the file; all if not given.

    Returns:
        `list[dict]`: the rows with all their fields, in the order of the file; `audio` is an absolute path.

    Raises:
        ValueError: if the file has fewer examples of a task.
    """
    path = data_dir / f"{split}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [{**row, "audio": str((data_dir / row["audio"]).resolve())} for row in rows]
    kept = first_of_each_task(rows, tasks, per_task)
    counts = Counter(row["task"] for row in kept)
    missing = [task for task in tasks if counts[task] < (per_task or 1)]
    if missing:
        raise ValueError(
            f"{path} has {counts[missing[0]]} examples of {missing[0]!r}, and {per_task or 1} are needed. Make the data "
            "again with `python -m benchmarks.mini_listen.data`, or set a smaller number."
        )
    return kept


def first_of_each_task(
    examples: Iterable[dict[str, Any]], tasks: tuple[str, ...], per_task: int | None
) -> list[dict[str, Any]]:
    """The first `per_task` examples of each task, or all of them if it is `None`, in their order."""
    counts = dict.fromkeys(tasks, 0)
    kept = []
    for example in examples:
        task = example["task"]
        if task in counts and (per_task is None or counts[task] < per_task):
            counts[task] += 1
            kept.append(example)
    return kept


def mixture(examples: list[dict[str, Any]], batch_size: int, steps: int, seed: int) -> list[dict[str, Any]]:
    """
    A stream of examples in which all tasks are equally frequent. All methods see the same batches, with the same wordings
    of the instructions, for the same seed.

    The tasks alternate in random order. The examples of a task are shuffled again in every pass over them, and each gets a
    training wording of its instruction that is drawn anew each time.

    Args:
        examples (`list[dict]`): training examples of all tasks.
        batch_size (`int`): examples per optimizer step.
        steps (`int`): number of optimizer steps.
        seed (`int`): seed of the order and of the wordings.

    Returns:
        `list[dict]`: `batch_size * steps` examples.
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
    return with_drawn_wordings(stream[: batch_size * steps], seed)


class StreamTrainer(Trainer):
    """A Trainer that keeps the order of its training examples."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def rates_of_the_last_layer(model: torch.nn.Module, learning_rate: float) -> dict[str, float]:
    """A lower rate for the projector's last layer, whose weights are smaller than those of the others; for all methods."""
    names = [name for name, weight in model.named_parameters() if weight.requires_grad and _LAST_LAYER.search(name)]
    return dict.fromkeys(names, _LAST_LAYER_RATE * learning_rate)


def train(
    adapted: Adapted,
    collator: AudioListenCollator,
    examples: list[dict[str, Any]],
    settings: RunSettings,
    work_dir: Path,
    device: str = "cpu",
) -> tuple[list[dict[str, Any]], float | None]:
    """
    Trains a model, starting from the last checkpoint in `work_dir` if there is one.

    Args:
        adapted ([`Adapted`]): the model with its adapter.
        collator ([`AudioListenCollator`]): collator with the cache of encoder outputs.
        examples (`list[dict]`): training examples.
        settings ([`RunSettings`]): settings of the run.
        work_dir (`Path`): folder for checkpoints.
        device (`str`, defaults to `"cpu"`): `"cpu"` or `"cuda"`.

    Returns:
        `tuple[list[dict], float | None]`: the Trainer's log history, and the seconds per step of the steps that were made
        in this call; `None` if there were none.
    """
    trainer = make_trainer(adapted, collator, examples, settings, work_dir, device)
    work_dir.mkdir(parents=True, exist_ok=True)
    checkpoint = get_last_checkpoint(str(work_dir))
    steps = settings.steps - (0 if checkpoint is None else int(checkpoint.rpartition("-")[2]))
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    seconds = time.perf_counter() - start
    return trainer.state.log_history, seconds / steps if steps > 0 else None


def make_trainer(
    adapted: Adapted,
    collator: Any,
    examples: list[dict[str, Any]],
    settings: RunSettings,
    work_dir: Path,
    device: str,
) -> StreamTrainer:
    """The trainer of [`train`], which takes the same arguments."""
    groups = parameter_groups(
        adapted.model,
        settings.learning_rate,
        value_learning_rate=adapted.value_rate * settings.value_learning_rate,
        shared_value_learning_rate=settings.value_learning_rate,
        other_learning_rates=rates_of_the_last_layer(adapted.model, settings.learning_rate),
    )
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98))
    schedule = get_cosine_schedule_with_warmup(optimizer, round(WARM_UP_SHARE * settings.steps), settings.steps)
    return StreamTrainer(
        adapted.model,
        TrainingArguments(
            str(work_dir),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            logging_steps=min(20, settings.steps),
            save_steps=max(100, settings.steps // 5),
            save_total_limit=1,
            remove_unused_columns=False,
            report_to=[],
            seed=settings.seed,
            use_cpu=device == "cpu",
            bf16=settings.precision == "bf16",
            # On a GPU, one process prepares the next batches while the device computes.
            dataloader_num_workers=0 if device == "cpu" else 1,
        ),
        train_dataset=mixture(examples, settings.batch_size, settings.steps, settings.seed),
        data_collator=collator,
        optimizers=(optimizer, schedule),
        callbacks=list(adapted.callbacks),
    )


def build_features(
    model: AudioListenForCausalLM,
    processor: AudioListenProcessor,
    examples: list[dict[str, Any]],
    folder: Path,
    device: str = "cpu",
) -> FeatureCache:
    """
    Computes the encoder outputs of all clips of some examples, and stores them on disk.

    Args:
        model ([`AudioListenForCausalLM`]): the base model.
        processor ([`AudioListenProcessor`]): its processor.
        examples (`list[dict]`): examples whose clips are encoded.
        folder (`Path`): folder of the cache.
        device (`str`, defaults to `"cpu"`): where to compute them, in float32.

    Returns:
        [`FeatureCache`]: the cache.
    """
    model.to(device)
    cache = FeatureCache(folder, model)
    # Several tasks are asked about one clip.
    cache.build(model, processor, list(dict.fromkeys(example["audio"] for example in examples)))
    return cache
