"""Accuracy of a classification whose answers are free text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import BaseMetric
from .registry import register_metric
from .text_normalization import normalize_answer


@register_metric("accuracy")
class Accuracy(BaseMetric):
    """
    Accuracy of answers among known labels. An answer is a label if both are the same after [`normalize_answer`]; an
    answer that only contains a label ("not happy") is no label, and wrong. `compute` returns

    - `accuracy`: share of right answers (the "weighted accuracy" of emotion recognition);
    - `balanced_accuracy`: mean over the labels in the references of the share of right answers among that label's rows
      (the "unweighted accuracy"), so that a rare label counts as much as a frequent one;
    - `unparseable`: share of answers that are no label. If it is high, the model does not know how to answer; the
      accuracy does not tell that from guessing wrong.

    Args:
        labels (`Sequence[str]`, *optional*): all labels there are. Those among the references if not given.
    """

    library = "sklearn.metrics"

    def __init__(self, *, labels: Sequence[str] | None = None, **settings: Any) -> None:
        super().__init__(**settings)
        self.labels: list[str] | None = None if labels is None else _normalized(labels)

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        label = normalize_answer(value)
        if not label:
            raise ValueError(f"`{name}` is empty ({value!r}), so no answer can be right. Leave the row out.")
        if self.labels is not None and label not in self.labels:
            raise ValueError(f"`{name}` is {value!r}, which is none of the labels {self.labels}.")
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
            "`labels` must hold at least one label, none empty and no two the same after normalisation, got "
            f"{list(labels)}, which become {normalized}."
        )
    return normalized
