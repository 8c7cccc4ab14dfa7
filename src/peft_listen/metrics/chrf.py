"""chrF of translations."""

from __future__ import annotations

from typing import Any

from .base import BaseMetric
from .bleu import check_translation, reference_streams
from .registry import register_metric


@register_metric("chrf")
class Chrf(BaseMetric):
    """
    chrF by sacrebleu (Popović, 2015): F-score of character n-grams, from 0 to 100. It needs no tokenizer, so it suits
    Chinese as it is. The `signature` to report beside the number is returned too.

    Args:
        word_order (`int`, defaults to 0): longest word n-gram; 2 is chrF++.
        lowercase (`bool`, defaults to `False`): whether case does not count.
    """

    library = "sacrebleu"
    takes_several_references = True

    def __init__(self, *, word_order: int = 0, lowercase: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        from sacrebleu.metrics import CHRF

        if not isinstance(word_order, int) or word_order < 0:
            raise ValueError(f"`word_order` must be a whole number from 0, got {word_order!r}.")
        self.scorer = CHRF(word_order=word_order, lowercase=lowercase)

    def _check_reference(self, value: Any, name: str) -> str:
        return check_translation(super()._check_reference(value, name), name)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        score = self.scorer.corpus_score(predictions, reference_streams(references))
        return {"chrf": float(score.score), "signature": str(self.scorer.get_signature())}
