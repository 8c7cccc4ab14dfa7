"""Runs the benchmark: prepares data, base model and features once, then executes every run that has no stored result.

    python -m benchmarks.mini_listen.run --list
    python -m benchmarks.mini_listen.run --form small --groups stage0 --processes 2
    python -m benchmarks.mini_listen.run --form full --device cuda --processes 8 --only "LoRA, r = 8" --seeds 0

`--estimate` prints the time of 20 steps of each selected experiment, and runs nothing. When the same command is repeated,
an interrupted run continues from its last checkpoint and a stored run is skipped. Several commands can run in parallel:
each takes runs that no other process is working on. `python -m benchmarks.mini_listen.results` makes the page of the
results from the stored runs.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from benchmarks.versions import library_versions
from peft_listen.analysis import SelectionRecords, summarize
from peft_listen.metrics import get_metric

from .estimate import estimate
from .evaluation import Evaluator, clip_scores, further_metrics
from .instructions import reworded
from .material import Material, adapt, prepare, projector_hash
from .methods import Adapted
from .planning import (
    PlannedRun,
    add_selection,
    add_settings,
    listing,
    plan_runs,
    results_folder,
    settings_of,
)
from .settings import FORMS, RunSettings
from .start import train_projector
from .storage import Run, answers_by_task, read_results, write_result, write_test_examples
from .training import read_split, train


def run(
    settings: RunSettings,
    material: Material,
    work_dir: Path,
    results_dir: Path,
    file_name: str,
    device: str = "cpu",
    evaluation_batch_size: int = 32,
) -> Run:
    """
    Trains and evaluates one run, starting from its last checkpoint if there is one, and stores its result.

    The result file appears only when the run has finished. A stored run is not repeated.

    Args:
        settings ([`RunSettings`]): settings of the run.
        material ([`Material`]): data and models that all runs share.
        work_dir (`Path`): folder for checkpoints.
        results_dir (`Path`): folder of the result files.
        file_name (`str`): name of the result file.
        device (`str`, defaults to `"cpu"`): `"cpu"` or `"cuda"`.
        evaluation_batch_size (`int`, defaults to 32): clips per batch outside training.

    Returns:
        `dict`: content of the result file.
    """
    stored = read_results(results_dir)
    if settings.name in stored:
        return stored[settings.name]
    adapted, collator = adapt(settings, material, device)
    examples = read_split(material.data_dir, "train", settings.tasks, settings.train_per_task)
    checkpoints = work_dir / settings.name
    log, seconds_per_step = train(adapted, collator, examples, settings, checkpoints, device)

    adapted.model.to(device)  # a trainer that had nothing left to do has not moved it
    evaluator = Evaluator(adapted.model, material.processor, collator, evaluation_batch_size, settings.precision)
    # Task by task: a batch is generated until its longest answer ends, and the answers of most tasks are short.
    train_rows, validation_rows, test_rows = (
        [row for task in settings.evaluated_tasks for row in rows if row["task"] == task]
        for rows in (material.train, material.validation, material.test if settings.test_per_task else [])
    )
    answers, records = evaluator.answers(test_rows)
    scores = clip_scores(test_rows, answers)
    further = further_metrics(test_rows, answers)
    if verification := [row for row in test_rows if row["task"] == "sv"]:
        further["sv"] = {"eer": _equal_error_rate(evaluator, verification)}
    result = {
        "settings_hash": settings.hash,
        "settings": settings.as_json(),
        "adapter_parameters": adapted.num_adapter_parameters(),
        "seconds_per_step": None if seconds_per_step is None else round(seconds_per_step, 4),
        "versions": library_versions(),
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "start": projector_hash(material, settings.projector_steps),
        "train_loss": evaluator.losses(train_rows),
        "validation_loss": evaluator.losses(validation_rows),
        "validation_loss_training_wordings": evaluator.losses(reworded(validation_rows, "train")),
        "test": {task: {"score": sum(row) / len(row), **further.get(task, {})} for task, row in scores.items()},
        "test_size": len(test_rows),
    }
    selections = None
    if settings.method == "listen" and test_rows:
        tasks, instructions = ([example[name] for example in test_rows] for name in ("task", "instruction"))
        selections = SelectionRecords.from_records(records, adapted.model, tasks, instructions)
        # A description instead of the name of a local folder.
        config = {
            **selections.config,
            "base_model_name_or_path": "SmolLM2-135M-Instruct, Whisper tiny.en, small BEATs",
        }
        selections = replace(selections, config=config)
        result["selections"] = summarize(selections).to_dict()
    if settings.method == "listen":
        result["losses_by_prompt_length"] = _losses_by_prompt_length(adapted, evaluator, settings, validation_rows)
    result["log"] = log
    result["answers"] = answers_by_task(test_rows, answers)
    result["clip_scores"] = scores
    write_result(results_dir, file_name, result, selections)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _equal_error_rate(evaluator: Evaluator, examples: list[dict[str, Any]]) -> float | None:
    truths = [int(example["answer"] == "Yes") for example in examples]
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


def perform(arguments: argparse.Namespace, missing: list[PlannedRun], material: Material) -> list[str]:
    """
    Executes the runs that no other process is working on.

    Args:
        arguments (`argparse.Namespace`): of the command.
        missing (`list[PlannedRun]`): runs without a stored result.
        material ([`Material`]): what all runs share.

    Returns:
        `list[str]`: labels and seeds of the runs that failed; the others are executed nevertheless.
    """
    checkpoints = work_folder(arguments) / "checkpoints"
    failed = []
    for number, one in enumerate(missing, start=1):
        settings = one.settings
        print(f"\n== {number} of {len(missing)}: {one.label}, seed {settings.seed} ({settings.name})", flush=True)
        start = time.perf_counter()
        try:
            # The operating system releases the lock of a process that dies.
            with FileLock(checkpoints / f"{settings.name}.lock", blocking=False):
                result = run(
                    settings,
                    material,
                    checkpoints,
                    results_folder(arguments),
                    one.file_name,
                    arguments.device,
                    arguments.evaluation_batch_size,
                )
        except Timeout:
            print("running in another process", flush=True)
            continue
        except Exception:
            traceback.print_exc()
            failed.append(f"{one.label}, seed {settings.seed}")
            continue
        scores = {task: round(values["score"], 3) for task, values in result["test"].items()}
        loss = statistics.fmean(result["validation_loss"].values())
        print(f"validation loss {loss:.3f}, scores {scores} ({time.perf_counter() - start:.0f} s)", flush=True)
    return failed


def work_folder(arguments: argparse.Namespace) -> Path:
    """Folder of the data, the base model, the features and the checkpoints of the form."""
    return arguments.folder / arguments.form


def _worker(arguments: argparse.Namespace, missing: list[PlannedRun]) -> None:
    """A process that shares the runs with others, after the data and the base model were made."""
    torch.set_num_threads(arguments.threads)
    folder = work_folder(arguments)
    with FileLock(folder / "checkpoints" / "material.lock"):
        material = prepare(folder, folder / "base", folder / "data", FORMS[arguments.form], arguments.device)
    sys.exit(_exit_status(perform(arguments, missing, material)))


def _exit_status(failed: list[str]) -> int:
    if failed:
        print(f"\nfailed: {'; '.join(failed)}", flush=True)
    return int(bool(failed))


def in_processes(count: int, target: Callable[..., None], *arguments: Any) -> int:
    """Calls a function in several new processes, and returns 1 if one of them has failed."""
    context = multiprocessing.get_context("spawn")
    # Not daemons, because they start data loaders.
    processes = [context.Process(target=target, args=arguments, daemon=False) for _ in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return int(any(process.exitcode for process in processes))


def add_machine(parser: argparse.ArgumentParser) -> None:
    """Adds the options about the machine, which results do not depend on."""
    parser.add_argument(
        "--folder", type=Path, default=Path(".mini_listen"), help="data, models, features, checkpoints"
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--processes", type=int, default=1, help="runs at once")
    parser.add_argument("--threads", type=int, help="CPU threads of a run (default: torch's number / processes)")
    parser.add_argument("--evaluation-batch-size", type=int, help="default: 32, on a GPU 128")


def complete_machine(arguments: argparse.Namespace) -> None:
    """
    Replaces options about the machine that were not given.

    Raises:
        ValueError: for a device that torch does not find, or fewer than one process.
    """
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device. Use `--device cpu`, or install a build of torch with CUDA.")
    if arguments.processes < 1:
        raise ValueError(f"--processes {arguments.processes}: expected 1 or more.")
    arguments.threads = arguments.threads or max(1, torch.get_num_threads() // arguments.processes)
    arguments.evaluation_batch_size = arguments.evaluation_batch_size or (32 if arguments.device == "cpu" else 128)


def make_material(arguments: argparse.Namespace) -> Material:
    """Makes the data, the base model, the features and the projector of the start, or reuses them."""
    from .base import beats_training, make_base

    folder, form = work_folder(arguments), FORMS[arguments.form]
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "checkpoints" / "material.lock"):
        base_dir, data_dir = make_base(
            folder,
            form.sizes,
            training=beats_training(form.name),
            device=arguments.device,
            threads=os.cpu_count() or 1,
            models_dir=arguments.folder / "models",
        )
        material = prepare(folder, base_dir, data_dir, form, arguments.device)
        train_projector(form, material, folder / "checkpoints", arguments.device)
        write_test_examples(results_folder(arguments), material.test)
    return material


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_settings(parser)
    add_selection(parser)
    add_machine(parser)
    parser.add_argument("--list", action="store_true", help="print the selected experiments, and run nothing")
    parser.add_argument("--estimate", action="store_true", help="time 20 steps of each, and run nothing else")
    arguments = parser.parse_args()
    try:
        complete_machine(arguments)
        planned = plan_runs(arguments.groups, settings_of(arguments), arguments.seeds, arguments.only)
    except ValueError as error:
        parser.error(str(error))
    if arguments.list:
        print(listing(arguments))
        return
    torch.set_num_threads(arguments.threads)
    stored = read_results(results_folder(arguments))
    missing = [one for name, one in planned.items() if name not in stored]
    print(
        f"{len(planned)} runs, {len(planned) - len(missing)} of them stored in {results_folder(arguments)}", flush=True
    )
    if not missing:
        return
    material = make_material(arguments)
    if arguments.estimate:
        print(estimate(missing, material, arguments.device, arguments.evaluation_batch_size))
    elif arguments.processes == 1:
        sys.exit(_exit_status(perform(arguments, missing, material)))
    else:
        sys.exit(in_processes(min(arguments.processes, len(missing)), _worker, arguments, missing))


if __name__ == "__main__":
    main()
