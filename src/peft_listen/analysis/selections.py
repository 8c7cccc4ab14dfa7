"""Which prompts each task uses: overlap of tasks, live prompts, entropy, and whether the queries have collapsed."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F


@dataclass
class SelectionLog:
    """
    The prompts chosen for the rows of each task.

    Example:

    ```python
    >>> import torch
    >>> from peft_listen.analysis import SelectionLog

    >>> log = SelectionLog(pool_size=8)
    >>> log.add(torch.tensor([[0, 1], [0, 2]]), ["speech", "speech"])
    >>> log.add(torch.tensor([[5, 1]]), ["sound"])
    >>> log.live_prompts()
    4
    >>> log.task_overlap(top=2)[("sound", "speech")]
    0.5

    ```

    Args:
        pool_size (`int`): number of prompts in the pool.
        counts (`dict[str, Counter]`): how often each task chose each prompt.
    """

    pool_size: int
    counts: dict[str, Counter[int]] = field(default_factory=dict)

    def add(self, indices: torch.Tensor, tasks: Sequence[str]) -> None:
        """
        Args:
            indices (`torch.LongTensor` of shape `(batch_size, k)`): chosen prompts, as in [`SelectionRecord`].
            tasks (`Sequence[str]` of length `batch_size`): each row's task.

        Raises:
            ValueError: if the two differ in length, or an index lies outside the pool.
        """
        if len(indices) != len(tasks):
            raise ValueError(f"There are {len(indices)} rows of selections, but {len(tasks)} tasks.")
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < self.pool_size:
            raise ValueError(f"An index lies outside the pool of {self.pool_size} prompts.")
        for row, task in zip(indices.tolist(), tasks, strict=True):
            self.counts.setdefault(task, Counter()).update(row)

    def live_prompts(self) -> int:
        """How many prompts of the pool were chosen at least once."""
        return len(set().union(*self.counts.values())) if self.counts else 0

    def top_prompts(self, task: str, top: int) -> list[int]:
        """
        The `top` prompts that a task chose most often; ties go to the lower index.

        Raises:
            KeyError: if nothing was added for the task.
        """
        ranked = sorted(self._counts_of(task).items(), key=lambda item: (-item[1], item[0]))
        return [index for index, _ in ranked[:top]]

    def task_overlap(self, top: int = 10) -> dict[tuple[str, str], float]:
        """
        For each pair of tasks, the share of their `top` most chosen prompts that both have, from 0 to 1. Pairs and their
        members are sorted. When a task has chosen fewer prompts than `top`, the smaller number counts.
        """
        overlaps = {}
        for first, second in itertools.combinations(sorted(self.counts), 2):
            size = min(top, len(self.counts[first]), len(self.counts[second]))
            common = set(self.top_prompts(first, size)) & set(self.top_prompts(second, size))
            overlaps[(first, second)] = len(common) / size
        return overlaps

    def mean_task_overlap(self, top: int = 10) -> float:
        """Mean of [`task_overlap`] over all pairs of tasks; 1.0 is collapse. 0.0 if there are fewer than two tasks."""
        overlaps = self.task_overlap(top)
        return sum(overlaps.values()) / len(overlaps) if overlaps else 0.0

    def entropy(self, task: str) -> float:
        """
        Entropy in bits of a task's choices: `log2(k)` when every row chooses the same k prompts.

        Raises:
            KeyError: if nothing was added for the task.
        """
        return _entropy(self._counts_of(task))

    def total_entropy(self) -> float:
        """Entropy in bits of the choices of all tasks together; `log2(pool_size)` when the pool is used evenly."""
        return _entropy(sum(self.counts.values(), Counter()))

    def _counts_of(self, task: str) -> Counter[int]:
        if task not in self.counts:
            raise KeyError(f"There is no task {task!r} in the log; there are {sorted(self.counts)}.")
        return self.counts[task]


def _entropy(counts: Counter[int]) -> float:
    if not counts:
        return 0.0
    shares = torch.tensor(list(counts.values()), dtype=torch.float64) / counts.total()
    return abs(float((shares * shares.log2()).sum()))


def mean_pairwise_cosine(vectors: torch.Tensor) -> float:
    """
    Mean cosine between different rows: near 1 when the rows are one direction.

    Args:
        vectors (`torch.FloatTensor` of shape `(num_vectors, size)`)

    Returns:
        `float` from -1 to 1; 0.0 for fewer than two rows.
    """
    count = len(vectors)
    if count < 2:
        return 0.0
    total = F.normalize(vectors.float(), dim=-1).sum(dim=0)
    return (float(total.square().sum()) - count) / (count * (count - 1))


def format_overlap(overlaps: Mapping[tuple[str, str], float]) -> str:
    """The pairs of tasks as an aligned table, one line a task."""
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
