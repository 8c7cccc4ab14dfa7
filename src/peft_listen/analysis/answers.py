"""Correct answers of each task, compared with what guessing gives."""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..metrics.text_normalization import normalize_answer


_FIELDS = ("task", "answer", "generated")


@dataclass(frozen=True)
class TaskAnswers:
    """
    How many answers of one task are correct. An answer is correct if it equals its reference after
    [`~peft_listen.metrics.text_normalization.normalize_answer`].

    Attributes:
        num_rows (`int`): number of answers.
        accuracy (`float`): fraction of correct answers.
        chance_level (`float`): accuracy of always giving the most frequent reference.
        most_frequent_answer (`str`): this reference, normalized.
        num_references (`int`): number of different references.
        p_value (`float`): probability of at least this accuracy if every answer were correct with the probability
            `chance_level` (one-sided binomial test).
        one_error_p_value (`float`): the same probability if all answers but one are correct. If it is not small, there are
            too few rows to tell a good accuracy from chance.
    """

    num_rows: int
    accuracy: float
    chance_level: float
    most_frequent_answer: str
    num_references: int
    p_value: float
    one_error_p_value: float


def score_answers(
    predictions: Iterable[Mapping[str, Any]], tasks: Collection[str] | None = None
) -> dict[str, TaskAnswers]:
    """
    Counts the correct answers of each task.

    Args:
        predictions (`Iterable[Mapping]`): rows with the strings `task`, `answer` (the reference) and `generated`, as
            returned by [`~peft_listen.data.read_predictions`]. Rows with an `error` have no answer and are left out.
        tasks (`Collection[str]`, *optional*): the tasks that are allowed to occur, those of the selections.

    Returns:
        `dict[str, TaskAnswers]`: the tasks, sorted by name; empty if there are no rows.

    Raises:
        ValueError: if a row lacks one of the fields, one is not a string, a reference is empty after normalization, or a
            task is not one of `tasks`.
        ImportError: if SciPy is not installed.
    """
    try:
        from scipy.stats import binom
    except ImportError as error:
        raise ImportError('The chance level of answers needs scipy: pip install "peft-listen[analysis]"') from error
    rows: dict[str, list[tuple[str, str]]] = {}
    for number, prediction in enumerate(predictions):
        task, reference, answer = _checked(prediction, number)
        if prediction.get("error") is None:
            rows.setdefault(task, []).append((reference, answer))
    if tasks is not None and (others := sorted(rows.keys() - set(tasks))):
        raise ValueError(
            f"The predictions contain the tasks {reprlib.repr(others)}, but the selections are for "
            f"{reprlib.repr(sorted(set(tasks)))}. Pass the predictions for the same data."
        )
    result = {}
    for task, pairs in sorted(rows.items()):
        references = Counter(reference for reference, _ in pairs)
        most_frequent, count = references.most_common(1)[0]
        correct, chance_level = sum(reference == answer for reference, answer in pairs), count / len(pairs)
        result[task] = TaskAnswers(
            num_rows=len(pairs),
            accuracy=correct / len(pairs),
            chance_level=chance_level,
            most_frequent_answer=most_frequent,
            num_references=len(references),
            p_value=float(binom.sf(correct - 1, len(pairs), chance_level)),
            one_error_p_value=float(binom.sf(len(pairs) - 2, len(pairs), chance_level)),
        )
    return result


def _checked(prediction: Any, number: int) -> tuple[str, str, str]:
    """Returns the task, and the reference and the answer after normalization."""
    expected = f"expected a mapping with the strings {', '.join(f'`{name}`' for name in _FIELDS)}"
    if not isinstance(prediction, Mapping):
        raise ValueError(f"Prediction {number} is a {type(prediction).__name__}; {expected}.")
    for name in _FIELDS:
        if not isinstance(prediction.get(name), str):
            found = f"is a {type(prediction[name]).__name__}" if name in prediction else "is missing"
            raise ValueError(f"`{name}` of prediction {number} {found}; {expected}.")
    reference = normalize_answer(prediction["answer"])
    if not reference:
        raise ValueError(
            f"`answer` of prediction {number} is empty ({prediction['answer']!r}), so no answer can be correct. Leave the "
            "row out."
        )
    return prediction["task"], reference, normalize_answer(prediction["generated"])
