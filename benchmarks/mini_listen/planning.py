"""Which runs a command is about: the options that select them, and the runs that belong to them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .experiments import GROUPS, RATE_SEED, Experiment, title_of
from .settings import FORMS, RunSettings
from .storage import RESULTS, read_results, result_file_name


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


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Adds the options that decide what the runs are compared with: the form and what differs from it."""
    parser.add_argument("--form", choices=list(FORMS), default="small", help="size of the benchmark (default: small)")
    parser.add_argument("--steps", type=int, help="steps of a full run (default: the form's)")
    parser.add_argument("--batch-size", type=int, help="clips per step (default: the form's)")
    parser.add_argument("--precision", choices=["float32", "bf16"], help="default: the form's")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder with a folder of results for each form")


def add_selection(parser: argparse.ArgumentParser) -> None:
    """Adds the options that select runs."""
    parser.add_argument("--groups", nargs="+", choices=list(GROUPS), default=list(GROUPS), help="default: all")
    parser.add_argument("--only", nargs="+", metavar="LABEL", help="only the experiments of these labels, see --list")
    parser.add_argument("--seeds", nargs="+", type=int, help="only these seeds (default: all of each experiment)")


def settings_of(arguments: argparse.Namespace) -> RunSettings:
    """The settings that all runs share."""
    given = {name: getattr(arguments, name) for name in ("steps", "batch_size", "precision")}
    changed = {name: value for name, value in given.items() if value is not None}
    return RunSettings.of_form(FORMS[arguments.form], **changed)


def results_folder(arguments: argparse.Namespace) -> Path:
    """Folder of the results of the form."""
    return arguments.results / arguments.form


def select_experiments(
    groups: list[str], base: RunSettings, seeds: list[int] | None = None, only: list[str] | None = None
) -> Iterator[tuple[str, Experiment]]:
    """
    The experiments of some groups, restricted to labels and seeds.

    Args:
        groups (`list[str]`): names of the groups.
        base ([`RunSettings`]): settings that all experiments share.
        seeds (`list[int]`, *optional*): restricts the runs to these seeds.
        only (`list[str]`, *optional*): restricts the experiments to these labels.

    Yields:
        `tuple[str, Experiment]`: group and experiment.

    Raises:
        ValueError: if no experiment of the groups has one of the labels.
    """
    experiments = [(group, experiment) for group in groups for experiment in GROUPS[group](base)]
    labels = {experiment.label for _, experiment in experiments}
    if unknown := [label for label in only or () if label not in labels]:
        raise ValueError(
            f"No experiment of {', '.join(groups)} has the label {unknown[0]!r}. `--list` prints the labels; put one that "
            "contains spaces in quotes."
        )
    for group, experiment in experiments:
        if only is None or experiment.label in only:
            kept = experiment.seeds if seeds is None else tuple(seed for seed in experiment.seeds if seed in seeds)
            yield group, replace(experiment, seeds=kept)


def plan_runs(
    groups: list[str], base: RunSettings, seeds: list[int] | None = None, only: list[str] | None = None
) -> dict[str, PlannedRun]:
    """
    The runs of some experiments, without those that need options which this version does not have. Arguments and errors as
    in [`select_experiments`].

    Returns:
        `dict[str, PlannedRun]`: each run once, by its name, although several groups may contain it. Those that choose the
        learning rates come first, then the first seed of all experiments, then the second.
    """
    differs = base != RunSettings.of_form(FORMS[base.form], method=base.method)
    planned: dict[str, PlannedRun] = {}
    for group, experiment in select_experiments(groups, base, seeds, only):
        for settings in experiment.runs() if not experiment.missing_options else ():
            file_name = result_file_name(group, experiment.label, settings, with_hash=differs)
            planned.setdefault(settings.name, PlannedRun(settings, experiment.label, file_name))
    order = {RATE_SEED: -1}
    return dict(sorted(planned.items(), key=lambda item: order.get(item[1].settings.seed, item[1].settings.seed)))


def listing(arguments: argparse.Namespace) -> str:
    """The selected experiments as lines of text: label, and which of its seeds are stored."""
    stored, base = read_results(results_folder(arguments)), settings_of(arguments)
    lines: list[str] = []
    last = ""
    for group, experiment in select_experiments(arguments.groups, base, arguments.seeds, arguments.only):
        if group != last:
            lines += [*([""] if lines else []), f"{group}: {title_of(group)}"]
            last = group
        if experiment.missing_options:
            state = f"needs {', '.join(experiment.missing_options)}, which this version does not have"
        else:
            state = " ".join(
                f"{settings.seed}{'' if settings.name in stored else ' (missing)'}" for settings in experiment.runs()
            )
            state = f"seeds {state}" if state else "none of these seeds"
        lines.append(f"  {experiment.label:<44} {experiment.settings.steps:>5} steps  {state}")
    return "\n".join(lines)
