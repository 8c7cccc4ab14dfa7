"""Scores the answers of a model, each task by its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tasks import MetricChoice, task_metrics


@dataclass(frozen=True)
class TaskScore:
    """
    Scores of one task.

    Attributes:
        num_rows (`int`): number of answers.
        metric (`str`): name of the main metric.
        value (`float`): value of the main metric.
        higher_is_better (`bool`): whether a higher value of the main metric is better.
        quality (`float`): the value on a scale from 0 to 1 on which higher is better: 1 minus an error rate, a hundredth of
            BLEU and chrF.
        values (`dict[str, float]`): all numbers that the main metric returns and the values of the others,
            by their names.
    """

    num_rows: int
    metric: str
    value: float
    higher_is_better: bool
    quality: float
    values: dict[str, float]


def score_predictions(
    predictions: Iterable[Mapping[str, Any]], metrics: Mapping[str, Sequence[MetricChoice]] | None = None
) -> dict[str, TaskScore]:
    """
    Computes the metrics of each task. They are, in this order of precedence, those of the argument `metrics`, those that the
    task's rows name in their field `metric`, and those of [`task_metrics`].

    Args:
        predictions (`Iterable[Mapping]`): rows with the strings `task`, `answer` (the reference) and `generated`, and
            optionally `metric` and `references` (all correct answers, a list of strings), as returned by [`~peft_listen.data.read_predictions`].
        metrics (`Mapping[str, Sequence[MetricChoice]]`, *optional*): metrics by the name of the task.

    Returns:
        `dict[str, TaskScore]`: scores by the name of the task, sorted.

    Raises:
        ValueError: if there are no rows, `metrics` names a task without rows, the rows of a task name different metrics, a
            metric does not take texts, or a row is invalid for its metric; the message names the task.
        ImportError: if the library of a metric is not installed.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in predictions:
        by_task.setdefault(row["task"], []).append(row)
    if not by_task:
        raise ValueError("There are no predictions to score.")
    chosen = dict(metrics or {})
    if unknown := sorted(chosen.keys() - by_task.keys()):
        raise ValueError(
            f"Metrics are set for the tasks {unknown}, which have no rows; the tasks are {sorted(by_task)}. Check the names."
        )
    return {
        task: _score(task, rows, list(chosen.get(task) or _metrics_of(task, rows)))
        for task, rows in sorted(by_task.items())
    }


def check_metrics(
    rows: Iterable[Mapping[str, Any]], metrics: Mapping[str, Sequence[MetricChoice]] | None = None
) -> None:
    """
    Checks that [`score_predictions`] can score the answers to some rows, before they are generated: every reference counts
    as its own answer.

    Args:
        rows (`Iterable[Mapping]`): rows with `task`, `answer`, and optionally `metric`.
        metrics (`Mapping[str, Sequence[MetricChoice]]`, *optional*): see [`score_predictions`].

    Raises:
        ValueError, ImportError: see [`score_predictions`].
    """
    score_predictions([{**row, "generated": row["answer"]} for row in rows], metrics)


def mean_quality(scores: Mapping[str, TaskScore]) -> float:
    """
    Returns the mean of the tasks' `quality`, from 0 to 1: one number for a model of several tasks.

    Args:
        scores (`Mapping[str, TaskScore]`): scores by the name of the task; at least one.
    """
    return sum(score.quality for score in scores.values()) / len(scores)


def _metrics_of(task: str, rows: Sequence[Mapping[str, Any]]) -> list[MetricChoice]:
    named = {row.get("metric") for row in rows}
    if named == {None}:
        return task_metrics(task)
    if len(named) > 1:
        shown = sorted("none" if name is None else repr(name) for name in named)
        raise ValueError(
            f"The rows of the task {task!r} name different metrics: {', '.join(shown)}. Use one metric per task, or divide "
            "the task into two."
        )
    return [MetricChoice.parse(named.pop() or "")]


def _score(task: str, rows: Sequence[Mapping[str, Any]], choices: list[MetricChoice]) -> TaskScore:
    values: dict[str, float] = {}
    main: Any = None
    for choice in choices:
        try:
            metric = choice.create()
            if "string" not in str(metric.features["predictions"]):
                raise ValueError(f"{choice.name!r} takes numbers as predictions, and the answers are texts.")
            references = [_references_of(row, metric) for row in rows]
            result = metric.compute(predictions=[row["generated"] for row in rows], references=references)
        except ValueError as error:
            raise ValueError(f"The task {task!r} cannot be scored by {choice.name!r}. {error}") from error
        # Of further metrics, only their value: the counts of WER and CER have the same names.
        shown = (result or {}) if main is None else {choice.name: (result or {}).get(choice.name)}
        main = main or metric
        for name, value in shown.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
                values.setdefault(name, value)
    name = choices[0].name
    if name not in values:
        raise ValueError(
            f"The metric {name!r} of the task {task!r} returns no finite number under its name; it returns {sorted(values)}."
        )
    value = values[name]
    higher_is_better = bool(getattr(main, "higher_is_better", True))
    share = value / getattr(main, "largest_value", 1.0)
    quality = share if higher_is_better else 1 - share
    return TaskScore(len(rows), name, value, higher_is_better, min(max(quality, 0.0), 1.0), values)


def _references_of(row: Mapping[str, Any], metric: Any) -> Any:
    """All correct answers of a row where the metric compares with several, and its `answer` otherwise."""
    several = getattr(metric, "takes_several_references", False)
    return (row.get("references") if several else None) or row["answer"]
