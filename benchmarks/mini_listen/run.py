"""Runs the benchmark: prepares data, base model and features once, then executes every run that has no stored result.

    python -m benchmarks.mini_listen.run [--groups methods remedies ...] [--steps 600] [--seeds 0 1 2]

When the same command is repeated, an interrupted run continues from its last checkpoint and a stored run is skipped.
Several processes can run the command in parallel: each takes runs that no other process is working on. With few cores,
two processes with `--threads 1` are faster than one process with two threads. `python -m
benchmarks.mini_listen.results` makes the tables from the stored results.
"""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.versions import library_versions
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.analysis import SelectionRecords, summarize
from peft_listen.metrics import get_metric
from peft_listen.training import AudioListenCollator, FeatureCache

from .evaluation import Evaluator, score
from .experiments import GROUPS, Experiment
from .instructions import reworded
from .methods import METHODS, Adapted
from .settings import TASKS, RunSettings
from .storage import RESULTS, Run, answers_by_task, read_results, result_file_name, write_result
from .training import build_features, first_of_each_task, read_split, train


@dataclass
class Material:
    """
    Data and models that all runs share.

    Args:
        base_dir (`Path`): folder of the base model.
        data_dir (`Path`): folder of the dataset.
        processor ([`AudioListenProcessor`]): processor of the base model.
        features ([`FeatureCache`]): encoder outputs of all clips.
        train, validation, test (`list[dict]`): examples that every run is evaluated on.
    """

    base_dir: Path
    data_dir: Path
    processor: AudioListenProcessor
    features: FeatureCache
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]


def run(settings: RunSettings, material: Material, work_dir: Path, results_dir: Path, file_name: str) -> Run:
    """
    Trains and evaluates one run, starting from its last checkpoint if there is one, and stores its result.

    The result file appears only when the run has finished. A stored run is not repeated.

    Args:
        settings ([`RunSettings`]): settings of the run.
        material ([`Material`]): data and models that all runs share.
        work_dir (`Path`): folder for checkpoints.
        results_dir (`Path`): folder of the result files.
        file_name (`str`): name of the result file.

    Returns:
        `dict`: content of the result file.
    """
    stored = read_results(results_dir)
    if settings.name in stored:
        return stored[settings.name]
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
        "settings_hash": settings.hash,
        "settings": settings.as_json(),
        "adapter_parameters": adapted.num_adapter_parameters(),
        "training_seconds": round(training_seconds),
        "versions": library_versions(),
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
        # A description instead of the name of a local folder.
        config = {
            **selections.config,
            "base_model_name_or_path": "SmolLM2-135M-Instruct, Whisper tiny.en, small BEATs",
        }
        selections = replace(selections, config=config)
        result["selections"] = summarize(selections).to_dict()
        result["losses_by_prompt_length"] = _losses_by_prompt_length(adapted, evaluator, settings, material.validation)
    result["log"] = log
    result["answers"] = answers_by_task(material.test, answers)
    write_result(results_dir, file_name, result, selections)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _equal_error_rate(evaluator: Evaluator, examples: list[dict[str, Any]]) -> float | None:
    truths = [int(example["answer"].strip(".").lower() == "yes") for example in examples]
    if len(set(truths)) < 2:
        return None
    scores = evaluator.verification_scores(examples)
    return get_metric("eer").compute(predictions=scores, references=truths)["eer"]


def _losses_by_prompt_length(
    adapted: Adapted, evaluator: Evaluator, settings: RunSettings, examples: list[dict[str, Any]]
) -> dict[str, dict[str, float]]:
    """Loss of the reference answers per prompt length and task."""
    losses = {}
    for k in settings.prompt_lengths:
        if k <= settings.options["pool_size"]:
            with adapted.model.base_model.use_prompt_length(k):
                losses[str(k)] = evaluator.losses(examples)
    return losses


def prepare(folder: Path, base_dir: Path, data_dir: Path, per_task: dict[str, int]) -> Material:
    """
    Loads the processor, computes the encoder outputs of all clips, and reads the examples to evaluate on.

    Args:
        folder (`Path`): receives the folder `features`.
        base_dir (`Path`): folder of the base model.
        data_dir (`Path`): folder of the dataset.
        per_task (`dict[str, int]`): number of examples per task, by split.

    Returns:
        [`Material`]: what all runs share.
    """
    processor = AudioListenProcessor.from_pretrained(base_dir)
    model = AudioListenForCausalLM.from_pretrained(base_dir)
    splits = {split: read_split(data_dir, split, TASKS, count) for split, count in per_task.items()}
    features = build_features(
        model, processor, [*splits["train"], *splits["validation"], *splits["test"]], folder / "features"
    )
    # The training loss is measured on as many clips as the validation loss.
    train_examples = first_of_each_task(splits["train"], TASKS, per_task["validation"])
    return Material(base_dir, data_dir, processor, features, train_examples, splits["validation"], splits["test"])


@dataclass(frozen=True)
class PlannedRun:
    """
    A run of an experiment.

    Args:
        settings ([`RunSettings`]): its settings.
        label (`str`): label of its experiment.
        file_name (`str`): name of its result file.
    """

    settings: RunSettings
    label: str
    file_name: str


def select_experiments(group: str, base: RunSettings, seeds: list[int] | None = None) -> Iterator[Experiment]:
    """The experiments of a group, restricted to the given seeds."""
    for experiment in GROUPS[group](base):
        kept = experiment.seeds if seeds is None else tuple(seed for seed in experiment.seeds if seed in seeds)
        yield replace(experiment, seeds=kept)


def plan_runs(groups: list[str], base: RunSettings, seeds: list[int] | None = None) -> dict[str, PlannedRun]:
    """
    The runs of some groups of experiments, without those whose options no longer exist.

    Args:
        groups (`list[str]`): names of the groups.
        base ([`RunSettings`]): settings that all experiments share.
        seeds (`list[int]`, *optional*): restricts the runs to these seeds.

    Returns:
        `dict[str, PlannedRun]`: each run once, by its name, although several groups may contain it.
    """
    differs = base != RunSettings(method=base.method)
    planned: dict[str, PlannedRun] = {}
    for group in groups:
        for experiment in select_experiments(group, base, seeds):
            for settings in experiment.runs() if experiment.is_runnable else ():
                file_name = result_file_name(group, experiment.label, settings, with_hash=differs)
                planned.setdefault(settings.name, PlannedRun(settings, experiment.label, file_name))
    return planned


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select runs."""
    parser.add_argument("--groups", nargs="+", choices=sorted(GROUPS), default=list(GROUPS), help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds (default: all of each experiment)")
    parser.add_argument("--steps", type=int, default=RunSettings.steps)
    parser.add_argument("--batch-size", type=int, default=RunSettings.batch_size)
    parser.add_argument("--train-per-task", type=int, default=RunSettings.train_per_task)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")


def settings_of(arguments: argparse.Namespace) -> RunSettings:
    """The settings that all runs share."""
    return RunSettings(
        method="projector",
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
    planned = plan_runs(arguments.groups, settings_of(arguments), arguments.seeds)
    stored = read_results(arguments.results)
    # The first seed of all experiments comes before the second seed of any.
    missing = sorted((one for name, one in planned.items() if name not in stored), key=lambda one: one.settings.seed)
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
    for number, one in enumerate(missing, start=1):
        settings = one.settings
        print(f"\n== {number} of {len(missing)}: {one.label}, seed {settings.seed} ({settings.name})", flush=True)
        start = time.perf_counter()
        try:
            # The operating system releases the lock of a process that dies.
            with FileLock(checkpoints / f"{settings.name}.lock", blocking=False):
                result = run(settings, material, checkpoints, arguments.results, one.file_name)
        except Timeout:
            print("running in another process", flush=True)
            continue
        scores = {task: round(values["score"], 3) for task, values in result["test"].items()}
        print(f"{scores} ({time.perf_counter() - start:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
