"""Scores relative to the room that a task has: 0 is the projector alone, 1 the best run on that task alone.

z_t = (score_t - connector_t) / (single_t - connector_t), clipped below at 0. The mean of z_t weights all tasks equally,
whatever their metric; its minimum and standard deviation over the tasks describe the balance.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


# A task on which the best run on it alone is less than two points above the projector alone has no room for a comparison.
LEAST_ROOM = 0.02


@dataclass(frozen=True)
class Scale:
    """
    The room of each task.

    Attributes:
        zero (`dict[str, float]`): score of the projector alone.
        one (`dict[str, float]`): best score of a run on that task alone.
    """

    zero: dict[str, float]
    one: dict[str, float]

    @property
    def tasks(self) -> list[str]:
        """The tasks that have room, in their order."""
        return [task for task in self.zero if task in self.one and self.one[task] - self.zero[task] >= LEAST_ROOM]

    @property
    def without_room(self) -> list[str]:
        """The other tasks."""
        return [task for task in self.zero if task in self.one and task not in self.tasks]

    def restricted_to(self, tasks: list[str]) -> Scale:
        """The scale of some of the tasks."""
        return Scale(
            {task: value for task, value in self.zero.items() if task in tasks},
            {task: value for task, value in self.one.items() if task in tasks},
        )

    def normalize(self, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """
        Normalized scores of the tasks that have room.

        Args:
            scores (`Mapping[str, np.ndarray]`): scores of any shape by task.

        Returns:
            `dict[str, np.ndarray]`: z of each task, at least 0; of the same shapes.
        """
        return {
            task: np.maximum(0.0, (np.asarray(scores[task]) - self.zero[task]) / (self.one[task] - self.zero[task]))
            for task in self.tasks
        }

    def mean(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Mean of z over the tasks that have room, of the shape of one task's scores."""
        return np.mean(list(self.normalize(scores).values()), axis=0)


@dataclass(frozen=True)
class Balance:
    """
    How evenly a run treats its tasks.

    Attributes:
        mean (`float`): mean of z over the tasks.
        worst (`float`): smallest z.
        spread (`float`): standard deviation of z over the tasks.
    """

    mean: float
    worst: float
    spread: float


def balance(scale: Scale, scores: Mapping[str, float]) -> Balance:
    """
    Balance of one run.

    Args:
        scale ([`Scale`]): with at least one task that has room.
        scores (`Mapping[str, float]`): its score on each task.

    Returns:
        [`Balance`]
    """
    values = [float(z) for z in scale.normalize({task: np.asarray(score) for task, score in scores.items()}).values()]
    return Balance(statistics.fmean(values), min(values), statistics.pstdev(values))


def relative_change(
    together: Mapping[str, float], alone: Mapping[str, float], lower_is_better: bool = False
) -> float | None:
    """
    Delta_m of multi-task learning (Maninis et al., arXiv 1904.08918): the mean over the tasks of the relative change from
    training alone to training together, in percent. Negative values are interference.

    Args:
        together (`Mapping[str, float]`): measure of each task after training on all tasks.
        alone (`Mapping[str, float]`): measure after training on this task alone.
        lower_is_better (`bool`, defaults to `False`): whether it is a loss.

    Returns:
        `float` or `None`: percent; `None` if no task has both measures. Tasks whose measure alone is 0 are left out.
    """
    sign = -1 if lower_is_better else 1
    changes = [sign * (together[task] - alone[task]) / alone[task] for task in together if alone.get(task)]
    return 100 * statistics.fmean(changes) if changes else None
