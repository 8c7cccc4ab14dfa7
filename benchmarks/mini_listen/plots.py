"""Plots of the stored runs, as SVG files."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from peft_listen.files import atomic_path

from .comparison import Study


def plot(study: Study, folder: Path) -> list[Path]:
    """
    Draws the methods that have stored runs: training loss, scores by task, and, with normalized scores, mean and worst task.

    Args:
        study ([`Study`]): the stored runs.
        folder (`Path`): folder of the files; created if missing.

    Returns:
        `list[Path]`: the files; the same runs give the same bytes.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mini_listen"  # makes the files reproducible
    import matplotlib.pyplot as plt

    labels = [experiment.label for experiment in study.groups["methods"] if study.runs(experiment.label)]
    drawings = {"training_loss": _draw_losses, "scores": _draw_scores}
    if study.scale is not None:
        drawings["balance"] = _draw_balance
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, draw in drawings.items() if labels else ():
        figure, axes = plt.subplots(figsize=(11, 4.5), layout="constrained")
        draw(axes, study, labels)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, ncols=2, fontsize="small")
        paths.append(folder / f"{study.base.form}_{name}.svg")
        with atomic_path(paths[-1]) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
        plt.close(figure)
    return paths


def _draw_losses(axes: Any, study: Study, labels: list[str]) -> None:
    for label in labels:
        run = next(iter(study.runs(label).values()))
        points = [(row["step"], row["loss"]) for row in run["log"] if "loss" in row]
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="optimizer step", ylabel="training loss of the first seed (with the key loss)", yscale="log")


def _draw_scores(axes: Any, study: Study, labels: list[str]) -> None:
    width = 0.8 / len(labels)
    for number, label in enumerate(labels):
        runs = study.runs(label).values()
        by_task = [[100 * run["test"][task]["score"] for run in runs] for task in study.tasks]
        places = [index + (number - (len(labels) - 1) / 2) * width for index in range(len(study.tasks))]
        deviations = [statistics.pstdev(values) for values in by_task]
        means = [statistics.fmean(values) for values in by_task]
        axes.bar(places, means, width, yerr=deviations, error_kw={"lw": 0.7}, label=f"{label} ({len(runs)})")
    axes.set_xticks(range(len(study.tasks)), study.tasks)
    axes.set(ylabel="score, times 100 (lines: deviation over the seeds)", ylim=(0, 100))


def _draw_balance(axes: Any, study: Study, labels: list[str]) -> None:
    for label in labels:
        balances = study.balances(label).values()
        axes.scatter([one.mean for one in balances], [one.worst for one in balances], label=label)
    axes.set(xlabel="mean of the normalized scores", ylabel="normalized score of the worst task")
