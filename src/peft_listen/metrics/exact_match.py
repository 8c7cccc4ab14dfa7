"""Exact match: the share of answers that are right word for word."""

from __future__ import annotations

from typing import Any

from .base import BaseMetric
from .registry import register_metric
from .text_normalization import normalize_answer


@register_metric("exact_match")
class ExactMatch(BaseMetric):
    """
    Share of the predictions, from 0 to 1, that equal their reference, or one of their references, after
    [`normalize_answer`]: case, white space and punctuation at the end do not count.

    An empty prediction is a wrong answer. A reference that normalises to nothing is refused.
    """

    takes_several_references = True

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if not normalize_answer(value):
            raise ValueError(f"`{name}` is empty ({value!r}), so no answer can be right. Leave the row out.")
        return value

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        matches = [
            normalize_answer(prediction) in set(map(normalize_answer, alternatives))
            for prediction, alternatives in zip(predictions, references, strict=True)
        ]
        return {"exact_match": sum(matches) / len(matches)}
