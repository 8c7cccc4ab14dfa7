"""Runs the benchmark: data, base model and features once, then every run that has no result yet.

    python -m benchmarks.mini_listen.run [--groups methods remedies ...] [--steps 600] [--seeds 0 1 2]

A run that is interrupted goes on from its last checkpoint when the same command is given again; a run that has a result
is never run again. The command may be given several times at once: each process takes runs that no other is at. On few
cores, two processes with `--threads 1` are faster than one with two threads. `python -m benchmarks.mini_listen.results`
makes the tables of what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from filelock import FileLock, Timeout

import peft_listen
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.analysis import SelectionRecords, summarize
from peft_listen.training import AudioListenCollator, FeatureCache

from .evaluation import Evaluator, score
from .experiments import GROUPS, Experiment
from .instructions import reworded
from .methods import METHODS, Adapted
from .settings import TASKS, RunSettings
from .training import build_features, first_of_each_task, read_split, train


RESULTS = Path(__file__).parent / "results"


@dataclass
class Material:
    """
    What all runs share.

    Args:
        base_dir (`Path`): folder of the base model.
        data_dir (`Path`): folder of the data set.
        processor ([`AudioListenProcessor`])
        features ([`FeatureCache`]): of all clips.
        train, validation, test (`list[dict]`): the examples that runs are evaluated on.
    """

    base_dir: Path
    data_dir: Path
    processor: AudioListenProcessor
    features: FeatureCache
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]


def run(settings: RunSettings, material: Material, work_dir: Path, results_dir: Path) -> Path:
    """
    One run, from its last checkpoint if there is one. What it leaves is written at its end, as a whole.

    Returns:
        Folder of the result: `run.json`, `log.jsonl`, `predictions.jsonl` and, of a pool, `selections.safetensors`.
    """
    result_dir = results_dir / settings.name
    if result_dir.is_dir():
        return result_dir
    start = time.perf_counter()
    torch.manual_seed(settings.seed)
    base = AudioListenForCausalLM.from_pretrained(material.base_dir)
    adapted = METHODS[settings.method](base, material.processor, settings.seed, **settings.options)
    collator = AudioListenCollator(material.processor, feature_cache=material.features)
    examples = read_split(material.data_dir, "train", settings.tasks, settings.train_per_task)
    checkpoints = work_dir / settings.name
    log = train(adapted, collator, examples, settings, checkpoints)
    training_seconds = time.perf_counter() - start

    evaluator = Evaluator(adapted.model, material.processor, collator)
    answers, records = evaluator.answers(material.test)
    result = {
        "settings": settings.as_json(),
        "adapter_parameters": adapted.num_adapter_parameters(),
        "training_seconds": round(training_seconds),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "peft": peft.__version__,
            "peft_listen": peft_listen.__version__,
        },
        "threads": torch.get_num_threads(),
        "train_loss": evaluator.losses(material.train),
        "validation_loss": evaluator.losses(material.validation),
        "validation_loss_training_wordings": evaluator.losses(reworded(material.validation, "train")),
        "test": score(material.test, answers),
        "test_size": len(material.test),
    }
    verification = [example for example in material.test if example["task"] == "sv"]
    result["test"]["sv"]["eer"] = _equal_error_rate(evaluator, verification)
    selections = None
    if settings.method == "listen":
        tasks, instructions = ([example[name] for example in material.test] for name in ("task", "instruction"))
        selections = SelectionRecords.from_records(records, adapted.model, tasks, instructions)
        # Not the folder on this machine, which says nothing to others.
        config = {
            **selections.config,
            "base_model_name_or_path": "SmolLM2-135M-Instruct, Whisper tiny.en, small BEATs",
        }
        selections = replace(selections, config=config)
        result["selections"] = summarize(selections).to_dict()
        result["losses_by_prompt_length"] = _sweep(adapted, evaluator, settings, material.validation)
    selected = [row.tolist() for record in records for row in record.indices] or [None] * len(answers)
    predictions = [
        {
            **{name: example[name] for name in ("task", "instruction", "answer")},
            "generated": answer,
            "selected": chosen,
        }
        for example, answer, chosen in zip(material.test, answers, selected, strict=True)
    ]
    _write_result(result_dir, result, log, predictions, selections)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result_dir


def _equal_error_rate(evaluator: Evaluator, examples: list[dict[str, Any]]) -> float | None:
    from peft_listen.metrics import get_metric

    truths = [int(example["answer"].strip(".").lower() == "yes") for example in examples]
    if len(set(truths)) < 2:
        return None
    scores = evaluator.verification_scores(examples)
    return get_metric("eer").compute(predictions=scores, references=truths)["eer"]


def _sweep(
    adapted: Adapted, evaluator: Evaluator, settings: RunSettings, examples: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Loss of the right answers at each prompt length, task by task."""
    losses = {}
    for k in settings.prompt_lengths:
        if k <= settings.options["pool_size"]:
            with adapted.model.base_model.use_prompt_length(k):
                losses[str(k)] = evaluator.losses(examples)
    return losses


def _write_result(
    folder: Path,
    result: dict[str, Any],
    log: list[Any],
    predictions: list[dict[str, Any]],
    selections: SelectionRecords | None,
) -> None:
    temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    (temporary / "run.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for name, rows in (("log.jsonl", log), ("predictions.jsonl", predictions)):
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        (temporary / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    if selections is not None:
        selections.save(temporary / "selections.safetensors")
    temporary.rename(folder)


def prepare(folder: Path, base_dir: Path, data_dir: Path, per_task: dict[str, int]) -> Material:
    """The processor, the features of the clips that are used, and the examples to evaluate on; `per_task` says how many
    examples of each task there are of each split."""
    processor = AudioListenProcessor.from_pretrained(base_dir)
    model = AudioListenForCausalLM.from_pretrained(base_dir)
    splits = {split: read_split(data_dir, split, TASKS, count) for split, count in per_task.items()}
    features = build_features(
        model, processor, [*splits["train"], *splits["validation"], *splits["test"]], folder / "features"
    )
    # As many as are validated on: what a method has learned of clips that it was trained on.
    train_examples = first_of_each_task(splits["train"], TASKS, per_task["validation"])
    return Material(base_dir, data_dir, processor, features, train_examples, splits["validation"], splits["test"])


def chosen_experiments(groups: list[str], base: RunSettings, seeds: list[int] | None) -> Iterator[Experiment]:
    """The experiments of some groups, with only those of their seeds that are asked for."""
    for group in groups:
        for experiment in GROUPS[group](base):
            wanted = experiment.seeds if seeds is None else tuple(seed for seed in experiment.seeds if seed in seeds)
            yield replace(experiment, seeds=wanted)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Options that say which runs are meant."""
    parser.add_argument("--groups", nargs="+", choices=sorted(GROUPS), default=list(GROUPS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds (default: all of each experiment)")
    parser.add_argument("--steps", type=int, default=RunSettings.steps)
    parser.add_argument("--batch-size", type=int, default=RunSettings.batch_size)
    parser.add_argument("--train-per-task", type=int, default=RunSettings.train_per_task)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")


def settings_of(arguments: argparse.Namespace) -> RunSettings:
    """The settings that all runs share."""
    return RunSettings(
        method="connector",
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        train_per_task=arguments.train_per_task,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_settings(parser)
    parser.add_argument(
        "--folder", type=Path, default=Path(".mini_listen"), help="data, models, features, checkpoints"
    )
    parser.add_argument("--test-per-task", type=int, default=60, help="at most 120")
    parser.add_argument("--validation-per-task", type=int, default=30, help="at most 60")
    parser.add_argument("--threads", type=int, help="CPU threads")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    experiments = list(chosen_experiments(arguments.groups, settings_of(arguments), arguments.seeds))
    # Some runs are in several groups.
    planned = {
        settings.name: (settings, experiment.label) for experiment in experiments for settings in experiment.runs()
    }
    # All experiments get their first seed before any gets its second.
    missing = sorted(
        (one for name, one in planned.items() if not (arguments.results / name).is_dir()),
        key=lambda item: item[0].seed,
    )
    print(f"{len(planned)} runs, {len(planned) - len(missing)} of them stored in {arguments.results}", flush=True)
    if not missing:
        return
    from .base import make_base

    checkpoints = arguments.folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    per_task = {split: getattr(arguments, f"{split}_per_task") for split in ("train", "validation", "test")}
    with FileLock(checkpoints / "material.lock"):
        base_dir, data_dir = make_base(arguments.folder)
        material = prepare(arguments.folder, base_dir, data_dir, per_task)
    for number, (settings, label) in enumerate(missing, start=1):
        print(f"\n== {number} of {len(missing)}: {label}, seed {settings.seed} ({settings.name})", flush=True)
        start = time.perf_counter()
        try:
            # The system drops the lock of a process that dies.
            with FileLock(checkpoints / f"{settings.name}.lock", blocking=False):
                result_dir = run(settings, material, checkpoints, arguments.results)
        except Timeout:
            print("another process is at it", flush=True)
            continue
        result = json.loads((result_dir / "run.json").read_text(encoding="utf-8"))
        scores = {task: round(values["score"], 3) for task, values in result["test"].items()}
        print(f"{scores} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
