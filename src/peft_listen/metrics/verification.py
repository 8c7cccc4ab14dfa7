"""Speaker verification metric: equal error rate."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
from datasets import Features, Value

from .base import BaseMetric
from .registry import register_metric
from .text_normalization import normalize_answer


@register_metric("eer")
class Eer(BaseMetric):
    """
    Equal error rate: the error rate at which the false acceptance rate equals the false rejection rate, from 0 to 1,
    interpolated between the two nearest points of the ROC curve. Random guessing gives 0.5. `compute` also returns
    `threshold`: accepting scores greater than or equal to it brings the two rates closest to each other.

    `predictions` are scores, higher for the same speaker; for a language model, the log-probability of "Yes" minus that of
    "No", as `peft-listen evaluate` computes it. `references` are 1 (same speaker) or 0 (different speakers); both values must
    occur.

    Args:
        answers (`Sequence[str]`, defaults to `("Yes", "No")`): the model's answers for the same speaker and for different ones.
    """

    library = "sklearn.metrics"
    higher_is_better = False

    def __init__(self, *, answers: Sequence[str] = ("Yes", "No"), **settings: Any) -> None:
        super().__init__(**settings)
        is_pair = not isinstance(answers, str) and len(answers) == 2 and all(isinstance(each, str) for each in answers)
        if not is_pair or "" in (pair := [normalize_answer(each) for each in answers]) or pair[0] == pair[1]:
            raise ValueError(
                "`answers` must be two different texts, the one for the same speaker and the one for different speakers, "
                f"got {answers!r}."
            )
        self.compared_answers = (answers[0], answers[1])

    def _input_features(self) -> Features:
        return Features({"predictions": Value("float64"), "references": Value("int64")})

    def _check_prediction(self, value: Any, name: str) -> float:
        value = _scalar(value)
        if not isinstance(value, numbers.Real) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite score, got {value!r}.")
        return float(value)

    def _check_reference(self, value: Any, name: str) -> int:
        value = _scalar(value)
        if not isinstance(value, (int, float)) or value not in (0, 1):
            raise ValueError(f"`{name}` must be 1 (same speaker) or 0 (different speakers), got {value!r}.")
        return int(value)

    def _compute(self, predictions: list[float], references: list[int]) -> dict[str, Any]:
        from sklearn.metrics import roc_curve

        if len(set(references)) < 2:
            raise ValueError(
                f"All {len(references)} references are {references[0]}: an equal error rate needs pairs of the same "
                "speaker (1) and pairs of different speakers (0)."
            )
        accepted, detected, thresholds = roc_curve(references, predictions, drop_intermediate=False)
        rejected = 1.0 - detected
        # Decreases from 1 (everything is rejected) to -1 (everything is accepted) as the threshold is lowered.
        gap = rejected - accepted
        after = int(np.argmax(gap <= 0))
        before = after - 1
        share = gap[before] / (gap[before] - gap[after])
        return {
            "eer": float(accepted[before] + share * (accepted[after] - accepted[before])),
            # The first point of the curve rejects everything; its threshold is infinite.
            "threshold": float(thresholds[1 + np.argmin(np.abs(gap[1:]))]),
        }


def _scalar(value: Any) -> Any:
    return value.item() if hasattr(value, "item") and getattr(value, "ndim", None) == 0 else value
