"""Metrics of short answers: exact match, F1 of words as in SQuAD, and accuracy among known labels."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from .base import BaseMetric
from .registry import register_metric
from .text_normalization import normalize_answer


class _AnswerMetric(BaseMetric):
    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if not normalize_answer(value):
            raise ValueError(f"`{name}` is empty ({value!r}), so no answer can be correct. Leave the row out.")
        return value


@register_metric("exact_match")
class ExactMatch(_AnswerMetric):
    """
    Fraction of predictions, from 0 to 1, that equal their reference (or one of their references) after
    [`normalize_answer`], which ignores case, extra white space and trailing punctuation.

    An empty prediction counts as wrong. A reference that is empty after normalization raises an error.
    """

    takes_several_references = True

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        matches = [
            normalize_answer(prediction) in set(map(normalize_answer, alternatives))
            for prediction, alternatives in zip(predictions, references, strict=True)
        ]
        return {"exact_match": sum(matches) / len(matches)}


@register_metric("squad_f1")
class SquadF1(BaseMetric):
    """
    F1 of the words of an answer and its reference, from 0 to 1, as the evaluation script of SQuAD computes it: the mean over
    the rows of each row's best reference. `compute` also returns `squad_exact_match`, the fraction of answers that equal a
    reference.

    Before, texts are normalized as in that script: lower case, without ASCII punctuation and the articles a, an and the,
    and with single spaces. So it is meant for English; [`ExactMatch`] normalizes less. SQuAD reports both values times 100.
    """

    takes_several_references = True

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if not value.strip():
            raise ValueError(f"`{name}` is empty ({value!r}), so no answer can be correct. Leave the row out.")
        return value

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        rows = [
            [(_squad_words(prediction), _squad_words(text)) for text in alternatives]
            for prediction, alternatives in zip(predictions, references, strict=True)
        ]
        return {
            "squad_f1": sum(max(_word_f1(*pair) for pair in row) for row in rows) / len(rows),
            "squad_exact_match": sum(any(answer == truth for answer, truth in row) for row in rows) / len(rows),
        }


def _squad_words(text: str) -> list[str]:
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def _word_f1(answer: list[str], truth: list[str]) -> float:
    if not answer or not truth:  # only articles or punctuation
        return float(answer == truth)
    common = sum((Counter(answer) & Counter(truth)).values())
    return 2 * common / (len(answer) + len(truth))


@register_metric("accuracy")
class Accuracy(_AnswerMetric):
    """
    Accuracy of free-text answers among known labels. An answer matches a label if both are equal after
    [`normalize_answer`]; an answer that merely contains a label ("not happy") does not match it and counts as wrong.
    `compute` returns

    - `accuracy`: fraction of correct answers (the "weighted accuracy" of emotion recognition);
    - `balanced_accuracy`: fraction of correct answers per reference label, averaged over these labels (the "unweighted
      accuracy"), so a rare label counts as much as a frequent one;
    - `unparseable`: fraction of answers that match no label. A high value means that the model does not know the answer
      format; `accuracy` alone cannot distinguish this from wrong guesses.

    Args:
        labels (`Sequence[str]`, *optional*): all labels. Defaults to the labels that occur in the references.
    """

    library = "sklearn.metrics"

    def __init__(self, *, labels: Sequence[str] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.labels: list[str] | None = None if labels is None else _normalized(labels)

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if self.labels is not None and normalize_answer(value) not in self.labels:
            raise ValueError(f"`{name}` is {value!r}, which is not one of the labels {self.labels}.")
        return value

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        from sklearn.metrics import accuracy_score, recall_score

        answers, truths = [[normalize_answer(text) for text in column] for column in (predictions, references)]
        present = sorted(set(truths))
        labels = set(present if self.labels is None else self.labels)
        return {
            "accuracy": float(accuracy_score(truths, answers)),
            "balanced_accuracy": float(recall_score(truths, answers, labels=present, average="macro")),
            "unparseable": sum(answer not in labels for answer in answers) / len(answers),
        }


def _normalized(labels: Sequence[str]) -> list[str]:
    if isinstance(labels, str) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"`labels` must be a list of strings, got {labels!r}.")
    normalized = [normalize_answer(label) for label in labels]
    if not normalized or "" in normalized or len(set(normalized)) < len(normalized):
        raise ValueError(
            "`labels` must contain at least one label, and the labels must be non-empty and distinct after "
            f"normalization; got {list(labels)}, which become {normalized}."
        )
    return normalized
