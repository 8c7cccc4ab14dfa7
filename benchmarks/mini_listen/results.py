"""Makes tables and plots from the stored runs, without models or data.

    python -m benchmarks.mini_listen.results [--results FOLDER] [--write benchmarks/RESULTS.md] [--plots FOLDER]

`--write` replaces the text between the markers of a Markdown file. `peft-listen report RUN.safetensors` makes the report on
the selections of one run.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.markdown import write_texts
from peft_listen.files import atomic_path

from .experiments import GROUPS, Experiment
from .run import add_settings, settings_of
from .settings import TASKS, RunSettings
from .storage import Run, read_results


MARKERS = "tables"


def load_runs(experiment: Experiment, stored: Mapping[str, Run]) -> list[Run]:
    """The stored runs of an experiment."""
    return [stored[settings.name] for settings in experiment.runs() if settings.name in stored]


def spread(values: Iterable[float]) -> str:
    """Mean of some values times 100, with the standard deviation if there are several."""
    values = [100 * value for value in values]
    mean = statistics.fmean(values)
    return f"{mean:.1f}" if len(values) < 2 else f"{mean:.1f} ± {statistics.stdev(values):.1f}"


def task_means(runs: list[Run]) -> dict[str, float]:
    """Mean score of each task over the seeds."""
    return {task: statistics.fmean(run["test"][task]["score"] for run in runs) for task in TASKS}


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Renders a Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


HEADER = (
    *("method", "seeds", "parameters", *TASKS, "mean", "worst task", "loss, trained clips", "loss, validation"),
    *("overlap", "live prompts", "silhouette", "minutes"),
)


def group_table(group: str, experiments: list[Experiment], stored: Mapping[str, Run]) -> str:
    """
    The table of one group of experiments: one row per experiment, one column per task.

    Args:
        group (`str`): name of the group.
        experiments (`list[Experiment]`): its experiments.
        stored (`Mapping[str, dict]`): the stored runs by name.

    Returns:
        `str`: title and table in Markdown, or a single line if none of the group's runs is stored.
    """
    title = f"**{group}**: {(GROUPS[group].__doc__ or '').strip().splitlines()[0]}"
    lines = [(experiment, load_runs(experiment, stored)) for experiment in experiments]
    if not any(runs for _, runs in lines):
        return f"{title} *Not run yet: {'; '.join(experiment.label for experiment in experiments)}.*"
    rows = [
        _cells(experiment, runs) if runs else [experiment.label, "not run", *[""] * (len(HEADER) - 2)]
        for experiment, runs in lines
    ]
    return f"{title}\n\n{markdown_table(HEADER, rows)}"


def _cells(experiment: Experiment, runs: list[Run]) -> list[str]:
    by_run = [[run["test"][task]["score"] for task in TASKS] for run in runs]
    selections = [run["selections"] for run in runs if "selections" in run]
    return [
        experiment.label,
        f"{len(runs)} of {len(experiment.seeds)}",
        f"{runs[0]['adapter_parameters']:,}".replace(",", " "),
        *(spread(column) for column in zip(*by_run, strict=True)),
        spread(statistics.fmean(scores) for scores in by_run),
        spread(min(scores) for scores in by_run),
        *(f"{mean_loss(runs, split):.3f}" for split in ("train", "validation")),
        spread(s["mean_overlap"] for s in selections) if selections else "",
        f"{mean_of(selections, 'live_prompts'):.0f} of {selections[0]['pool_size']}" if selections else "",
        f"{mean_of(selections, 'silhouette'):.2f}" if selections else "",
        f"{mean_of(runs, 'training_seconds') / 60:.0f}",
    ]


def mean_loss(runs: list[Run], split: str) -> float:
    """Loss on the examples of a split, averaged over tasks and runs."""
    return statistics.fmean(statistics.fmean(run[f"{split}_loss"].values()) for run in runs)


def mean_of(rows: list[dict[str, Any]], name: str) -> float:
    """Mean of one field over several rows."""
    return statistics.fmean(row[name] for row in rows)


def sweep_table(experiments: list[Experiment], stored: Mapping[str, Run]) -> str:
    """Table of the mean validation loss at each prompt length; empty if no run was evaluated at several lengths."""
    header: list[str] = []
    rows = []
    for experiment in experiments:
        for run in load_runs(experiment, stored):
            if losses := run.get("losses_by_prompt_length"):
                header = header or ["validation loss at k =", *losses]
                means = (f"{statistics.fmean(by_task.values()):.3f}" for by_task in losses.values())
                rows.append([experiment.label, *means])
    return markdown_table(header, rows) if rows else ""


def wordings_table(experiments: Iterable[Experiment], stored: Mapping[str, Run]) -> str:
    """
    Table of the mean validation loss with unseen wordings of the instructions and with those of the training split.

    Args:
        experiments (`Iterable[Experiment]`): experiments of any groups; a run that several of them share is listed once.
        stored (`Mapping[str, dict]`): the stored runs by name.

    Returns:
        `str`: the table in Markdown, or an empty string if no stored run has both losses.
    """
    planned: dict[str, tuple[str, RunSettings]] = {}
    for experiment in experiments:
        for settings in experiment.runs():
            planned.setdefault(settings.name, (experiment.label, settings))
    rows = []
    for label, settings in planned.values():
        run = stored.get(settings.name, {})
        if known := run.get("validation_loss_training_wordings"):
            new = {task: run["validation_loss"][task] for task in known}
            means = (f"{statistics.fmean(losses.values()):.3f}" for losses in (new, known))
            rows.append([label, f"{settings.learning_rate:g}", str(settings.seed), *means])
    header = ("validation loss without sqa", "learning rate", "seed", "unseen wordings", "training wordings")
    return markdown_table(header, rows) if rows else ""


def tasks_won(runs: list[Run], reference: list[Run]) -> list[str]:
    """The tasks on which the mean score of some runs is at or above that of the reference runs."""
    ours, theirs = task_means(runs), task_means(reference)
    return [task for task in TASKS if ours[task] >= theirs[task]]


def on_common_seeds(*groups: list[Run]) -> list[list[Run]]:
    """Restricts several lists of runs to the seeds that all of them contain, to average over the same seeds."""
    seeds = set.intersection(*({run["settings"]["seed"] for run in runs} for runs in groups))
    return [[run for run in runs if run["settings"]["seed"] in seeds] for runs in groups]


def reference_of(experiments: Iterable[Experiment]) -> Experiment | None:
    """The experiment of a group that the others are compared with, or `None` if the group compares no methods."""
    return next((experiment for experiment in experiments if experiment.is_reference), None)


def wins(experiments: list[Experiment], reference: Experiment, stored: Mapping[str, Run]) -> list[str]:
    """
    Counts for each experiment the tasks on which it is at or above the reference.

    Args:
        experiments (`list[Experiment]`): experiments of one group.
        reference ([`Experiment`]): the one to compare the others with.
        stored (`Mapping[str, dict]`): the stored runs by name.

    Returns:
        `list[str]`: a Markdown list item for each experiment with stored runs.
    """
    reference_runs = load_runs(reference, stored)
    lines = []
    for experiment in experiments:
        if experiment is reference:
            continue
        runs, theirs = on_common_seeds(load_runs(experiment, stored), reference_runs)
        if runs:
            won = tasks_won(runs, theirs)
            names = f" ({', '.join(won)})" if won else ""
            seeds = "one common seed" if len(runs) == 1 else f"{len(runs)} common seeds"
            lines.append(
                f"- {experiment.label}: at or above {reference.label} on {len(won)} of {len(TASKS)} tasks{names}, "
                f"over {seeds}."
            )
    return lines


def stored_test_sizes(stored: Mapping[str, Run]) -> str:
    """Number of test examples on which the stored runs were evaluated."""
    sizes = {run["test_size"] for run in stored.values()}
    return " or ".join(map(str, sorted(sizes))) or "no"


def report(arguments: argparse.Namespace) -> str:
    """Renders all tables in Markdown."""
    base, stored = settings_of(arguments), read_results(arguments.results)
    parts = [
        f"{base.steps} steps of {base.batch_size} clips; learning rate {base.learning_rate:g}, of soft prompts and "
        f"values {base.value_learning_rate:g}; {stored_test_sizes(stored)} test examples. Scores times 100, "
        "mean ± standard deviation over the seeds: word accuracy (asr), chrF (en2zh), accuracy (er, sv, sqa), "
        "ROUGE-L (acap). Loss: per token of the reference answer, mean over the tasks, on clips of the training split and on "
        "as many validation clips. Overlap: share of the ten most selected prompts that two tasks have in common, mean "
        "over pairs of tasks, times 100. Minutes: training time."
    ]
    groups = {group: list(GROUPS[group](base)) for group in arguments.groups}
    for group, experiments in groups.items():
        parts.append(group_table(group, experiments, stored))
        if reference := reference_of(experiments):
            parts.append("\n".join(wins(experiments, reference, stored)))
        if all(experiment.settings.prompt_lengths for experiment in experiments):
            parts.append(sweep_table(experiments, stored))
    whole = (e for experiments in groups.values() for e in experiments if e.settings.steps == base.steps)
    if table := wordings_table(whole, stored):
        parts.append(
            f"**All runs of {base.steps} steps**: validation loss with unseen wordings of the instructions.\n\n{table}"
        )
    return "\n\n".join(part for part in parts if part)


def plot(arguments: argparse.Namespace, folder: Path) -> list[Path]:
    """Draws training loss and scores per task of the groups that compare methods, as SVG files; returns their paths."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mini_listen"  # makes the files reproducible
    import matplotlib.pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    stored = read_results(arguments.results)
    paths = []
    for group in GROUPS:
        experiments = list(GROUPS[group](settings_of(arguments)))
        if reference_of(experiments) is None:
            continue
        lines = [(e.label, runs) for e in experiments if (runs := load_runs(e, stored))]
        for name, draw in (("training_loss", _draw_losses), ("scores", _draw_scores)):
            if lines:
                figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
                draw(axes, lines)
                axes.spines[["top", "right"]].set_visible(False)
                axes.legend(frameon=False, ncols=2)
                paths.append(folder / f"{group}_{name}.svg")
                with atomic_path(paths[-1]) as temporary:
                    figure.savefig(temporary, format="svg", metadata={"Date": None})
                plt.close(figure)
    return paths


def _draw_losses(axes: Any, lines: list[tuple[str, list[Run]]]) -> None:
    for label, runs in lines:
        points = [(row["step"], row["loss"]) for row in runs[0]["log"] if "loss" in row]
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="optimizer step", ylabel="training loss, seed 0 (with the key loss)", yscale="log")
    axes.set_yticks([1, 2, 3, 4, 5, 6], list("123456"))
    axes.minorticks_off()


def _draw_scores(axes: Any, lines: list[tuple[str, list[Run]]]) -> None:
    width = 0.8 / len(lines)
    for number, (label, runs) in enumerate(lines):
        means = task_means(runs)
        places = [index + (number - (len(lines) - 1) / 2) * width for index in range(len(TASKS))]
        heights = [100 * means[task] for task in TASKS]
        spreads = [100 * statistics.pstdev(run["test"][task]["score"] for run in runs) for task in TASKS]
        axes.bar(places, heights, width, yerr=spreads, error_kw={"lw": 1}, label=f"{label} ({len(runs)})")
    axes.set_xticks(range(len(TASKS)), TASKS)
    axes.set(ylabel="score, times 100 (lines: deviation over the seeds)", ylim=(0, 100))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_settings(parser)
    parser.add_argument("--write", type=Path, help="Markdown file with markers, such as benchmarks/RESULTS.md")
    parser.add_argument("--plots", type=Path, help="folder for the plots")
    arguments = parser.parse_args()
    tables = report(arguments)
    print(tables)
    if arguments.write:
        write_texts(arguments.write, {MARKERS: tables})
    if arguments.plots:
        print("\n".join(map(str, plot(arguments, arguments.plots))))


if __name__ == "__main__":
    main()
