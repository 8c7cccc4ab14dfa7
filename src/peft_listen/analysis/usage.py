"""How often each task selects each prompt, and the overlap and entropy that follow from it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch


@dataclass
class PromptUsage:
    """
    Counts of the prompts that the rows of each task select.

    Example:

    ```python
    >>> import torch
    >>> from peft_listen.analysis import PromptUsage

    >>> usage = PromptUsage(pool_size=8)
    >>> usage.add(torch.tensor([[0, 1], [0, 2]]), ["speech", "speech"])
    >>> usage.add(torch.tensor([[5, 1]]), ["sound"])
    >>> usage.live_prompts()
    4
    >>> usage.task_overlap(top=2)[("sound", "speech")]
    0.5

    ```

    Args:
        pool_size (`int`): number of prompts in the pool.
        counts (`dict[str, Counter]`, *optional*): for each task, how often it selected each prompt.
    """

    pool_size: int
    counts: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, indices: torch.Tensor, tasks: Sequence[str]) -> None:
        """
        Adds the selections of a batch.

        Args:
            indices (`torch.LongTensor` of shape `(batch_size, k)`): selected prompts, as in [`SelectionRecord`].
            tasks (`Sequence[str]` of length `batch_size`): task of each row.

        Raises:
            ValueError: if the two differ in length, or an index is outside the pool.
        """
        if len(indices) != len(tasks):
            raise ValueError(f"There are {len(indices)} rows of selections, but {len(tasks)} tasks; pass one per row.")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.pool_size:
            raise ValueError(
                f"`indices` run from {int(indices.min())} to {int(indices.max())}, which is outside the pool of "
                f"{self.pool_size} prompts. Set `pool_size` to that of the adapter."
            )
        for row, task in zip(indices.tolist(), tasks, strict=True):
            self.counts.setdefault(task, Counter()).update(row)

    def live_prompts(self) -> int:
        """Returns the number of prompts that were selected at least once."""
        return len(set().union(*self.counts.values())) if self.counts else 0

    def top_prompts(self, task: str, top: int) -> list[int]:
        """
        Returns the `top` prompts that a task selected most often, in descending order; ties go to the lower index.

        Raises:
            KeyError: if there are no counts for the task.
        """
        ranked = sorted(self._counts_of(task).items(), key=lambda item: (-item[1], item[0]))
        return [index for index, _ in ranked[:top]]

    def task_overlap(self, top: int = 10) -> dict[tuple[str, str], float]:
        """
        Returns, for each pair of tasks, the fraction of their `top` most selected prompts that both have in common, from
        0 to 1. Pairs and their members are sorted. If a task has selected fewer than `top` prompts, the smaller number
        is used.
        """
        overlaps = {}
        for first, second in itertools.combinations(sorted(self.counts), 2):
            size = min(top, len(self.counts[first]), len(self.counts[second]))
            common = set(self.top_prompts(first, size)) & set(self.top_prompts(second, size))
            overlaps[(first, second)] = len(common) / size
        return overlaps

    def mean_task_overlap(self, top: int = 10) -> float:
        """Returns the mean of [`task_overlap`] over all pairs; 1.0 is full collapse, 0.0 if there are fewer than two tasks."""
        overlaps = self.task_overlap(top)
        return sum(overlaps.values()) / len(overlaps) if overlaps else 0.0

    def entropy(self, task: str) -> float:
        """
        Returns the entropy of a task's selections in bits: `log2(k)` if every row selects the same k prompts.

        Raises:
            KeyError: if there are no counts for the task.
        """
        return _entropy(self._counts_of(task))

    def total_entropy(self) -> float:
        """Returns the entropy of all tasks' selections in bits: `log2(pool_size)` if the pool is used evenly."""
        return _entropy(sum(self.counts.values(), Counter()))

    def _counts_of(self, task: str) -> Counter[int]:
        if task not in self.counts:
            raise KeyError(f"There is no task {task!r}; the tasks are {sorted(self.counts)}.")
        return self.counts[task]


def _entropy(counts: Counter[int]) -> float:
    if not counts:
        return 0.0
    shares = torch.tensor(list(counts.values()), dtype=torch.float64) / counts.total()
    return abs(float((shares * shares.log2()).sum()))


def format_overlap(overlaps: Mapping[tuple[str, str], float]) -> str:
    """Formats the result of [`PromptUsage.task_overlap`] as an aligned table with one line per task."""
    tasks = sorted({task for pair in overlaps for task in pair})
    width = max((len(task) for task in tasks), default=0)
    lines = [" " * width + "".join(f"  {task:>{max(5, len(task))}}" for task in tasks)]
    for row in tasks:
        cells = []
        for column in tasks:
            value = 1.0 if row == column else overlaps[(min(row, column), max(row, column))]
            cells.append(f"  {value:>{max(5, len(column))}.2f}")
        lines.append(f"{row:<{width}}" + "".join(cells))
    return "\n".join(lines)
