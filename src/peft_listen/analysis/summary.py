"""The numbers that say whether tasks draw on prompts of their own, and what to make of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .query_space import majority_share, neighbor_accuracy, silhouette
from .records import SelectionRecords
from .selections import mean_pairwise_cosine


@dataclass(frozen=True)
class TaskSummary:
    """
    One task's selections.

    Attributes:
        num_rows (`int`): rows of the task.
        live_prompts (`int`): prompts that at least one row chose.
        entropy (`float`): entropy of the choices in bits; log2(k) when all rows choose the same k.
        effective_prompts (`float`): 2 to the power of the entropy: as many prompts, equally used, have this entropy.
        top_prompts (`list[tuple[int, float]]`): the most chosen prompts and the share of the task's rows that did.
    """

    num_rows: int
    live_prompts: int
    entropy: float
    effective_prompts: float
    top_prompts: list[tuple[int, float]]


@dataclass(frozen=True)
class SelectionSummary:
    """
    What the selections for a data set amount to.

    Attributes:
        num_rows (`int`), pool_size (`int`), prompt_length (`int`): rows, prompts in the pool, prompts a row.
        top (`int`): how many most chosen prompts of each task the overlap is of.
        live_prompts (`int`): prompts that at least one row chose.
        reachable_prompts (`int`): as many could have been chosen: the pool's, or rows times prompts a row if fewer.
        effective_prompts (`float`): 2 to the power of the entropy of all choices.
        mean_overlap (`float`, *optional*): mean of `overlap`; 1 is collapse. `None` for a single task.
        chance_overlap (`float`): the overlap of two tasks that take `top` prompts of the pool blindly.
        overlap (`dict[tuple[str, str], float]`): share of common top prompts of each pair of tasks.
        silhouette (`float`, *optional*): see [`silhouette`].
        neighbor_accuracy (`float`, *optional*): see [`neighbor_accuracy`].
        majority_share (`float`): what guessing the most frequent task would get right of that.
        query_cosine (`float`): mean cosine between the queries of different rows; 1 is collapse.
        tasks (`dict[str, TaskSummary]`): by name, sorted.
    """

    num_rows: int
    pool_size: int
    prompt_length: int
    top: int
    live_prompts: int
    reachable_prompts: int
    effective_prompts: float
    mean_overlap: float | None
    chance_overlap: float
    overlap: dict[tuple[str, str], float]
    silhouette: float | None
    neighbor_accuracy: float | None
    majority_share: float
    query_cosine: float
    tasks: dict[str, TaskSummary]

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON can hold it; the pairs of `overlap` become `[first, second, value]`."""
        result = {name: value for name, value in vars(self).items() if name not in ("overlap", "tasks")}
        result["overlap"] = [[*pair, value] for pair, value in self.overlap.items()]
        result["tasks"] = {name: dict(vars(task)) for name, task in self.tasks.items()}
        return result


def summarize(records: SelectionRecords, top: int = 10) -> SelectionSummary:
    """
    Args:
        records ([`SelectionRecords`])
        top (`int`, defaults to 10): how many most chosen prompts of each task are compared and listed.

    Raises:
        ValueError: if `top` is below 1.
        ImportError: if scikit-learn is not installed.
    """
    if top < 1:
        raise ValueError(f"`top` must be at least 1, got {top}.")
    log = records.log()
    tasks = {}
    for task in records.task_names:
        usage, entropy = records.usage(task), log.entropy(task)
        tasks[task] = TaskSummary(
            num_rows=sum(name == task for name in records.tasks),
            live_prompts=len(log.counts[task]),
            entropy=entropy,
            effective_prompts=2.0**entropy,
            top_prompts=[(index, float(usage[index])) for index in log.top_prompts(task, top)],
        )
    overlap = log.task_overlap(top)
    return SelectionSummary(
        num_rows=len(records.tasks),
        pool_size=records.pool_size,
        prompt_length=records.prompt_length,
        top=top,
        live_prompts=log.live_prompts(),
        reachable_prompts=min(records.pool_size, records.indices.numel()),
        effective_prompts=2.0 ** log.total_entropy(),
        mean_overlap=log.mean_task_overlap(top) if overlap else None,
        chance_overlap=min(1.0, top / records.pool_size),
        overlap=overlap,
        silhouette=silhouette(records.queries, records.tasks),
        neighbor_accuracy=neighbor_accuracy(records.queries, records.tasks),
        majority_share=majority_share(records.tasks),
        query_cosine=mean_pairwise_cosine(records.queries),
        tasks=tasks,
    )
