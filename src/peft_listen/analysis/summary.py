"""Summary statistics of selections: whether each task selects prompts of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from .answers import TaskAnswers, score_answers
from .collapse import collapse_measures
from .query_space import majority_share, neighbor_accuracy, silhouette
from .records import SelectionRecords


@dataclass(frozen=True)
class TaskSummary:
    """
    Statistics of one task's selections.

    Attributes:
        num_rows (`int`): number of rows of the task.
        live_prompts (`int`): number of prompts that at least one row selects.
        entropy (`float`): entropy of the selections in bits; log2(k) if all rows select the same k prompts.
        effective_prompts (`float`): 2 to the power of the entropy: the number of equally used prompts with this entropy.
        top_prompts (`list[tuple[int, float]]`): the most selected prompts, each with the fraction of the task's rows that
            select it.
    """

    num_rows: int
    live_prompts: int
    entropy: float
    effective_prompts: float
    top_prompts: list[tuple[int, float]]


@dataclass(frozen=True)
class SelectionSummary:
    """
    Statistics of the selections for a data set.

    Attributes:
        num_rows (`int`): number of rows.
        pool_size (`int`): number of prompts in the pool.
        prompt_length (`int`): number of prompts per row.
        top (`int`): number of most selected prompts per task that `overlap` compares.
        live_prompts (`int`): number of prompts that at least one row selects.
        reachable_prompts (`int`): upper bound of `live_prompts`: `pool_size`, or rows times prompts per row if smaller.
        effective_prompts (`float`): 2 to the power of the entropy of all selections.
        mean_overlap (`float`, *optional*): mean of `overlap`; 1 is full collapse. `None` for a single task.
        chance_overlap (`float`): expected overlap of two tasks that select `top` prompts at random.
        overlap (`dict[tuple[str, str], float]`): for each pair of tasks, the fraction of common top prompts.
        silhouette (`float`, *optional*): see [`silhouette`].
        neighbor_accuracy (`float`, *optional*): see [`neighbor_accuracy`].
        majority_share (`float`): accuracy of always predicting the most frequent task, to compare `neighbor_accuracy` with.
        query_cosine, key_cosine, top_prompt_share (`float`): measures of collapse, as [`ListenCallback`] logs them; see
            [`~peft_listen.analysis.collapse.collapse_measures`].
        tasks (`dict[str, TaskSummary]`): statistics of each task, sorted by name.
        answers (`dict[str, TaskAnswers]`): correct answers of each task with predictions, sorted by name.
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
    key_cosine: float
    top_prompt_share: float
    tasks: dict[str, TaskSummary]
    answers: dict[str, TaskAnswers] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Converts the summary to JSON-serializable values; the pairs of `overlap` become `[first, second, value]`."""
        result = {name: value for name, value in vars(self).items() if name not in ("overlap", "tasks", "answers")}
        result["overlap"] = [[*pair, value] for pair, value in self.overlap.items()]
        result["tasks"] = {name: dict(vars(task)) for name, task in self.tasks.items()}
        result["answers"] = {name: dict(vars(answers)) for name, answers in self.answers.items()}
        return result


def summarize(
    records: SelectionRecords, top: int = 10, predictions: Iterable[Mapping[str, Any]] = ()
) -> SelectionSummary:
    """
    Computes the summary statistics of selection records.

    Args:
        records ([`SelectionRecords`]): the selections.
        top (`int`, defaults to 10): number of most selected prompts per task to compare and list.
        predictions (`Iterable[Mapping]`, *optional*): answers of the model, with the strings `task`, `answer` and
            `generated`; see [`~peft_listen.data.read_predictions`]. They need not be in the order of the records.

    Returns:
        [`SelectionSummary`]

    Raises:
        ValueError: if `top` is below 1, a prediction is not valid, or its task does not occur in the records.
        ImportError: if scikit-learn is not installed.
    """
    if top < 1:
        raise ValueError(f"`top` must be at least 1, got {top}.")
    answers = score_answers(predictions, records.tasks)
    usage = records.usage()
    tasks = {}
    for task in records.task_names:
        rates, entropy = records.selection_rates(task), usage.entropy(task)
        tasks[task] = TaskSummary(
            num_rows=sum(name == task for name in records.tasks),
            live_prompts=len(usage.counts[task]),
            entropy=entropy,
            effective_prompts=2.0**entropy,
            top_prompts=[(index, float(rates[index])) for index in usage.top_prompts(task, top)],
        )
    overlap = usage.task_overlap(top)
    return SelectionSummary(
        num_rows=len(records.tasks),
        pool_size=records.pool_size,
        prompt_length=records.prompt_length,
        top=top,
        live_prompts=usage.live_prompts(),
        reachable_prompts=min(records.pool_size, records.indices.numel()),
        effective_prompts=2.0 ** usage.total_entropy(),
        mean_overlap=usage.mean_task_overlap(top) if overlap else None,
        chance_overlap=min(1.0, top / records.pool_size),
        overlap=overlap,
        silhouette=silhouette(records.queries, records.tasks),
        neighbor_accuracy=neighbor_accuracy(records.queries, records.tasks),
        majority_share=majority_share(records.tasks),
        **collapse_measures(records.queries, records.keys, records.indices),
        tasks=tasks,
        answers=answers,
    )
