"""Mixture of tasks: how often each task occurs among the rows of an epoch."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from torch.utils.data import Sampler


class TaskMixture(Sampler[int]):
    """
    Draws rows so that each task has a given share of every epoch.

    The share of a task with n rows is proportional to `weight * n ** (1 / temperature)` (Raffel et al., arXiv 1910.10683).
    At a temperature of 1, without weights, every row occurs once in each epoch; the higher the temperature, the more equal
    are the tasks. Of a task with more rows than its share, the following epochs have the other rows; the rows of a task with
    fewer are repeated. No row of a task occurs again before all have occurred.

    The rows are a function of the seed and the epoch, so a resumed training has the same ones.

    Args:
        tasks (`Sequence[str]`): the task of each row.
        temperature (`float`, defaults to 1.0): at least 1, or infinity for equal shares.
        weights (`Mapping[str, float]`, *optional*): weights by the name of the task, by default 1. Rows of a task of weight 0
            do not occur.
        num_samples (`int`, *optional*): rows of an epoch; by default as many as there are.
        seed (`int`, defaults to 0): seed of the order.

    Raises:
        ValueError: if there are no rows, a number is out of its range, `weights` names an unknown task, or all are 0.

    ```python
    >>> mixture = TaskMixture(["asr"] * 90 + ["er"] * 10, temperature=math.inf)
    >>> mixture.counts
    {'asr': 50, 'er': 50}

    ```
    """

    def __init__(
        self,
        tasks: Sequence[str],
        temperature: float = 1.0,
        weights: Mapping[str, float] | None = None,
        num_samples: int | None = None,
        seed: int = 0,
    ) -> None:
        self.num_samples = len(tasks) if num_samples is None else num_samples
        if not tasks or self.num_samples < 1:
            raise ValueError(f"A mixture needs rows, got {len(tasks)} of them for epochs of {self.num_samples}.")
        self.counts = task_counts(Counter(tasks), self.num_samples, temperature, weights)
        self.seed = seed
        self.epoch = 0
        self._rows: dict[str, list[int]] = {task: [] for task in self.counts}
        for row, task in enumerate(tasks):
            if task in self._rows:
                self._rows[task].append(row)

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """
        Sets the epoch, which determines the rows and their order. Trainers call it.

        Args:
            epoch (`int`): number of the epoch, from 0.
        """
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        drawn = [row for task in self.counts for row in self._draw(task)]
        random.Random(f"order {self.seed} {self.epoch}").shuffle(drawn)
        return iter(drawn)

    def _draw(self, task: str) -> list[int]:
        """The rows of one task in this epoch: the next ones of an endless sequence of shuffled passes over all of them."""
        rows, count = self._rows[task], self.counts[task]
        first, result = self.epoch * count, []
        for number in range(first // len(rows), -(-(first + count) // len(rows))):
            one_pass = random.Random(f"{task} {self.seed} {number}").sample(rows, len(rows))
            offset = number * len(rows)
            result += one_pass[max(first - offset, 0) : first + count - offset]
        return result


def task_counts(
    num_rows: Mapping[str, int],
    num_samples: int,
    temperature: float = 1.0,
    weights: Mapping[str, float] | None = None,
) -> dict[str, int]:
    """
    Number of rows of each task in an epoch of a [`TaskMixture`].

    Args:
        num_rows (`Mapping[str, int]`): number of rows that each task has.
        num_samples (`int`): rows of an epoch.
        temperature (`float`, defaults to 1.0): at least 1.
        weights (`Mapping[str, float]`, *optional*): weights by the name of the task, by default 1.

    Returns:
        `dict[str, int]`: numbers by the name of the task, sorted, with the sum `num_samples`. Tasks of weight 0 are left out,
        all others have at least one row if there are enough.

    Raises:
        ValueError: if a number is out of its range, `weights` names an unknown task, or all are 0.
    """
    weights = dict(weights or {})
    if not temperature >= 1:
        raise ValueError(f"`temperature` must be at least 1, got {temperature}: 1 is proportional, infinity is equal.")
    if unknown := sorted(weights.keys() - num_rows.keys()):
        raise ValueError(
            f"Weights are set for the tasks {unknown}, which have no rows; the tasks are {sorted(num_rows)}."
        )
    for task, weight in weights.items():
        if not 0 <= weight < math.inf:
            raise ValueError(f"The weight of the task {task!r} must be a finite number of at least 0, got {weight}.")
    sizes = {
        task: weights.get(task, 1.0) * count ** (1 / temperature)
        for task, count in sorted(num_rows.items())
        if weights.get(task, 1.0) > 0
    }
    if not sizes:
        raise ValueError(f"All tasks have the weight 0: {sorted(num_rows)}. Leave out the weight of at least one.")
    exact = {task: num_samples * size / sum(sizes.values()) for task, size in sizes.items()}
    counts = {task: math.floor(share) for task, share in exact.items()}
    # The largest remainders are rounded up, so that the sum is right.
    by_remainder = sorted(exact, key=lambda task: (counts[task] - exact[task], task))
    for task in by_remainder[: num_samples - sum(counts.values())]:
        counts[task] += 1
    for task in [task for task, count in counts.items() if count == 0]:
        largest = max(counts, key=lambda name: counts[name])
        if counts[largest] > 1:
            counts[largest] -= 1
            counts[task] = 1
    return {task: count for task, count in counts.items() if count > 0}


def parse_weights(assignments: Sequence[str]) -> dict[str, float]:
    """
    Reads weights in the notation of the command line.

    Args:
        assignments (`Sequence[str]`): `TASK=WEIGHT` each.

    Returns:
        `dict[str, float]`: weights by the name of the task.

    Raises:
        ValueError: for another form, or a task that occurs more than once.
    """
    weights: dict[str, float] = {}
    for assignment in assignments:
        task, equals, text = (
            (part.strip() for part in assignment.rpartition("=")) if "=" in assignment else ("", "", "")
        )
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not equals or not task or math.isnan(weight):
            raise ValueError(f"{assignment!r} does not give a task its weight; expected TASK=WEIGHT, e.g. asr=2.")
        if task in weights:
            raise ValueError(f"The task {task!r} has two weights. Give one.")
        weights[task] = weight
    return weights
