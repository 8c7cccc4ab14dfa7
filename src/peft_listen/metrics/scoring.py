"""Scores the answers of a model, each task by its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .tasks import MetricChoice, task_metrics
from .text_normalization import normalize_answer


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
        num_skipped (`int`): number of rows without an answer, which the values leave out.
    """

    num_rows: int
    metric: str
    value: float
    higher_is_better: bool
    quality: float
    values: dict[str, float]
    num_skipped: int = 0

    @property
    def shown_metrics(self) -> list[str]:
        """The metrics for a table: the main one and all others but counts, such as that of substitutions."""
        return [name for name, value in self.values.items() if name == self.metric or not isinstance(value, int)]

    @property
    def counted_rows(self) -> str:
        """The number of answers for a table, with that of the skipped rows if there are some."""
        return f"{self.num_rows} ({self.num_skipped} skipped)" if self.num_skipped else str(self.num_rows)


def score_predictions(
    predictions: Iterable[Mapping[str, Any]], metrics: Mapping[str, Sequence[MetricChoice]] | None = None
) -> dict[str, TaskScore]:
    """
    Computes the metrics of each task. They are, in this order of precedence, those of the argument `metrics`, those that the
    task's rows name in their field `metric`, and those of [`task_metrics`].

    Args:
        predictions (`Iterable[Mapping]`): rows with the strings `task`, `answer` (the reference) and `generated`, and
            optionally `metric`, `references` (all correct answers, a list of strings) and `score` (a number, for metrics of
            scores such as `eer`), as returned by [`~peft_listen.data.read_predictions`]. Rows with an `error` have no answer:
            they are left out and counted.
        metrics (`Mapping[str, Sequence[MetricChoice]]`, *optional*): metrics by the name of the task.

    Returns:
        `dict[str, TaskScore]`: scores by the name of the task, sorted.

    Raises:
        ValueError: if there are no rows, a task has none with an answer, `metrics` names a task without rows, the rows
            of a task name different metrics, a metric takes neither texts nor scores, or a row is invalid for its
            metric; the message names the task.
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
    score_predictions([{**row, "generated": row["answer"], "score": 0.0, "error": None} for row in rows], metrics)


def compared_answers(
    rows: Iterable[Mapping[str, Any]], metrics: Mapping[str, Sequence[MetricChoice]] | None = None
) -> dict[str, tuple[str, str]]:
    """
    The answers whose log-probabilities give the field `score`, for tasks that have a metric of scores.

    Args:
        rows (`Iterable[Mapping]`): rows with `task`, and optionally `metric`.
        metrics (`Mapping[str, Sequence[MetricChoice]]`, *optional*): see [`score_predictions`].

    Returns:
        `dict[str, tuple[str, str]]`: two answers by the name of the task.

    Raises:
        ValueError: if two metrics of a task compare different answers, or its rows name different metrics.
        ImportError: if the library of a metric is not installed.
    """
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    found: dict[str, tuple[str, str]] = {}
    for task, each in sorted(by_task.items()):
        pairs = [
            getattr(choice.create(), "compared_answers", None)
            for choice in (metrics or {}).get(task) or _metrics_of(task, each)
        ]
        different = list(dict.fromkeys(pair for pair in pairs if pair is not None))
        if len(different) > 1:
            raise ValueError(f"The metrics of the task {task!r} compare different answers: {different}. Use one pair.")
        if different:
            found[task] = different[0]
    return found


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


def _score(task: str, all_rows: Sequence[Mapping[str, Any]], choices: list[MetricChoice]) -> TaskScore:
    rows = [row for row in all_rows if row.get("error") is None]
    if not rows:
        raise ValueError(
            f"The task {task!r} has no answers to score: all of its {len(all_rows)} rows are skipped. The first: "
            f"{all_rows[0]['error']}"
        )
    values: dict[str, float] = {}
    main: Any = None
    for choice in choices:
        try:
            metric = choice.create()
            pair = getattr(metric, "compared_answers", None)
            if pair is not None:
                predictions = [_score_of(row, pair) for row in rows]
                references = [_side(row["answer"], pair) for row in rows]
            elif "string" in str(metric.features["predictions"]):
                predictions = [row["generated"] for row in rows]
                references = [_references_of(row, metric) for row in rows]
            else:
                raise ValueError(f"{choice.name!r} takes numbers as predictions, and the answers are texts.")
            result = metric.compute(predictions=predictions, references=references)
        except ValueError as error:
            raise ValueError(f"The task {task!r} cannot be scored by {choice.name!r}. {error}") from error
        # Of further metrics, only their value: the counts of WER and CER have the same names.
        shown = (result or {}) if main is None else {choice.name: (result or {}).get(choice.name)}
        main = metric if main is None else main  # a metric without rows is false
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
    return TaskScore(
        len(rows), name, value, higher_is_better, min(max(quality, 0.0), 1.0), values, len(all_rows) - len(rows)
    )


def _score_of(row: Mapping[str, Any], pair: tuple[str, str]) -> float:
    score = row.get("score")
    if score is None:
        raise ValueError(
            f"The rows have no `score`, the log-probability of {pair[0]!r} minus that of {pair[1]!r}. `peft-listen evaluate` "
            "computes it if it is given the model and this metric."
        )
    return float(score)


def _side(answer: str, pair: tuple[str, str]) -> int:
    """1 if an answer is the first of two, 0 if it is the second."""
    known = [normalize_answer(each) for each in pair]
    if normalize_answer(answer) not in known:
        raise ValueError(
            f"The correct answer {answer!r} is neither {pair[0]!r} nor {pair[1]!r}. Set the two answers: "
            "`METRIC:answers=FIRST|SECOND`."
        )
    return 1 - known.index(normalize_answer(answer))


def _references_of(row: Mapping[str, Any], metric: Any) -> Any:
    """All correct answers of a row where the metric compares with several, and its `answer` otherwise."""
    several = getattr(metric, "takes_several_references", False)
    return (row.get("references") if several else None) or row["answer"]
