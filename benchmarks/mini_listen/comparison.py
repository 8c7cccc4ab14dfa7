"""The stored runs of a form by experiment, their scores, and how two methods compare."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .experiments import CONNECTOR, GROUPS, Experiment, single_task_label
from .normalization import Balance, Scale, balance
from .settings import RunSettings
from .significance import LEVEL, Interval, bootstrap_interval, sign_flip_p_value
from .skills import tasks_with_skill
from .storage import Run


@dataclass(frozen=True)
class Comparison:
    """
    Two methods on the seeds that both have.

    Attributes:
        seeds (`list[int]`): these seeds.
        differences (`list[float]`): for each seed, the mean score of ours minus that of theirs.
        p_value (`float`): of the sign-flip test over the seeds.
        interval ([`Interval`]): bootstrap over seeds and clips.
        won (`list[str]`): tasks on which ours is at or above theirs in the mean over the seeds.
        tasks (`list[str]`): tasks that the comparison is about.
    """

    seeds: list[int]
    differences: list[float]
    p_value: float
    interval: Interval
    won: list[str]
    tasks: list[str]

    @property
    def is_better(self) -> bool:
        """Whether ours is better by both tests."""
        return self.interval.low > 0 and self.p_value <= 1 - LEVEL

    @property
    def is_worse(self) -> bool:
        """Whether ours is worse by both tests."""
        return self.interval.high < 0 and self.p_value <= 1 - LEVEL


class Study:
    """
    The stored runs of a form.

    Args:
        base ([`RunSettings`]): settings that all runs of the form share.
        stored (`Mapping[str, dict]`): stored runs by name, see [`read_results`].
        skills (`dict[str, float]`, *optional*): losses of the frozen language model by task, see `skills.py`.
        routing (`list[dict]`, *optional*): what queries tell about the task, see `routing.py`.
    """

    def __init__(
        self,
        base: RunSettings,
        stored: Mapping[str, Run],
        skills: dict[str, float] | None = None,
        routing: list[dict[str, Any]] | None = None,
    ) -> None:
        self.base, self.stored, self.skills, self.routing = base, stored, skills, routing
        self.groups: dict[str, list[Experiment]] = {group: list(make(base)) for group, make in GROUPS.items()}
        self._compared: dict[tuple[str, str], Comparison | None] = {}
        self._by_label = {one.label: one for experiments in self.groups.values() for one in experiments}

    def experiment(self, label: str) -> Experiment:
        """The experiment of a label."""
        return self._by_label[label]

    def runs(self, label: str) -> dict[int, Run]:
        """The stored runs of an experiment by seed."""
        runs = {settings.seed: self.stored.get(settings.name) for settings in self.experiment(label).runs()}
        return {seed: run for seed, run in runs.items() if run is not None}

    def missing(self, label: str) -> list[int]:
        """The seeds of an experiment without a stored run."""
        return [seed for seed in self.experiment(label).seeds if seed not in self.runs(label)]

    @property
    def tasks(self) -> list[str]:
        """The tasks whose skill the frozen language model has, which the comparisons are about."""
        return [task for task in tasks_with_skill(self.skills) if task in self.base.tasks]

    def task_means(self, label: str) -> dict[str, float] | None:
        """Score of each task, the mean over the stored seeds; `None` without a stored run."""
        runs = self.runs(label)
        if not runs:
            return None
        return {
            task: statistics.fmean(run["test"][task]["score"] for run in runs.values()) for task in self.base.tasks
        }

    def losses(self, label: str, name: str = "validation_loss") -> list[float]:
        """Mean loss of each stored run, see [`mean_loss`]."""
        return [self.mean_loss(run[name]) for run in self.runs(label).values()]

    def mean_loss(self, losses: Mapping[str, float]) -> float:
        """Mean over the tasks whose skill the frozen language model has."""
        return statistics.fmean(losses[task] for task in self.tasks)

    def single_task_scores(self, task: str) -> list[float]:
        """Scores of the stored runs on one task alone."""
        labels = (single_task_label(task, factor) for factor in (1, 4))
        return [run["test"][task]["score"] for label in labels for run in self.runs(label).values()]

    @property
    def scale(self) -> Scale | None:
        """The scale of normalized scores; `None` as long as a run that it needs is missing."""
        zero = self.task_means(CONNECTOR)
        one = {task: max(scores) for task in self.tasks if (scores := self.single_task_scores(task))}
        is_complete = all(
            not self.missing(single_task_label(task, factor)) for task in self.tasks for factor in (1, 4)
        )
        if zero is None or not is_complete:
            return None
        scale = Scale({task: zero[task] for task in self.tasks}, one)
        return scale if scale.tasks else None

    def balances(self, label: str, tasks: Sequence[str] | None = None) -> dict[int, Balance]:
        """Balance of each stored run by seed, with normalized scores; empty without a scale."""
        scale = self.scale
        if scale is None:
            return {}
        scale = scale.restricted_to(list(tasks or self.tasks))
        return {
            seed: balance(scale, {task: run["test"][task]["score"] for task in scale.tasks})
            for seed, run in self.runs(label).items()
        }

    def clip_scores(self, label: str, seeds: Sequence[int]) -> dict[str, np.ndarray]:
        """Scores of the clips of each task, `(num_seeds, num_clips)`."""
        runs = self.runs(label)
        return {task: np.array([runs[seed]["clip_scores"][task] for seed in seeds]) for task in self.tasks}

    def compare(self, ours: str, theirs: str) -> Comparison | None:
        """
        Compares two experiments: by normalized scores, or by plain ones as long as there is no scale.

        Args:
            ours, theirs (`str`): labels.

        Returns:
            [`Comparison`] or `None`: `None` if they have no stored seed in common.
        """
        if (ours, theirs) not in self._compared:
            self._compared[ours, theirs] = self._compare(ours, theirs)
        return self._compared[ours, theirs]

    def _compare(self, ours: str, theirs: str) -> Comparison | None:
        seeds = sorted(self.runs(ours).keys() & self.runs(theirs).keys())
        if not seeds:
            return None
        scale = self.scale
        mean_score = plain_mean if scale is None else scale.mean
        scores = [self.clip_scores(label, seeds) for label in (ours, theirs)]
        means = [{task: values.mean(axis=-1) for task, values in method.items()} for method in scores]
        differences = (mean_score(means[0]) - mean_score(means[1])).tolist()
        tasks = self.tasks if scale is None else scale.tasks
        return Comparison(
            seeds=seeds,
            differences=differences,
            p_value=sign_flip_p_value(differences),
            interval=bootstrap_interval(*scores, mean_score),
            won=[task for task in tasks if means[0][task].mean() >= means[1][task].mean()],
            tasks=tasks,
        )

    def score_difference(self, ours: str, theirs: str) -> float | None:
        """Difference of the plain mean scores over the common seeds, in points of 100; `None` without a common seed."""
        return self._difference(ours, theirs, self._mean_score)

    def loss_difference(self, ours: str, theirs: str) -> float | None:
        """Difference of the mean validation losses over the common seeds; `None` without a common seed."""
        return self._difference(ours, theirs, lambda run: self.mean_loss(run["validation_loss"]))

    def _mean_score(self, run: Run) -> float:
        return 100 * statistics.fmean(run["test"][task]["score"] for task in self.tasks)

    def _difference(self, ours: str, theirs: str, measure: Callable[[Run], float]) -> float | None:
        first, second = self.runs(ours), self.runs(theirs)
        seeds = first.keys() & second.keys()
        return statistics.fmean(measure(first[seed]) - measure(second[seed]) for seed in seeds) if seeds else None


def plain_mean(scores: Mapping[str, np.ndarray]) -> np.ndarray:
    """Mean of plain scores over the tasks."""
    return np.mean(list(scores.values()), axis=0)
