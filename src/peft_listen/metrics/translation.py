"""Translation metrics: BLEU and chrF, computed by sacrebleu."""

from __future__ import annotations

import itertools
from typing import Any

from .base import BaseMetric
from .registry import register_metric


class _TranslationMetric(BaseMetric):
    library = "sacrebleu"
    largest_value = 100.0
    takes_several_references = True
    scorer: Any

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if not value.strip():
            raise ValueError(f"`{name}` is empty ({value!r}), so no translation can match it. Leave the row out.")
        return value

    def _score(self, predictions: list[str], references: list[list[str]]) -> Any:
        # sacrebleu expects one list per reference position; rows with fewer references are filled with None.
        streams = [list(stream) for stream in itertools.zip_longest(*references)]
        return self.scorer.corpus_score(predictions, streams)


@register_metric("bleu")
class Bleu(_TranslationMetric):
    """
    Corpus BLEU as computed by sacrebleu (arXiv 1804.08771), from 0 to 100. `compute` also returns `precisions` (of
    n-grams of 1 to 4 tokens), `brevity_penalty` and the `signature` to report with the score.

    Args:
        tokenize (`str`, defaults to `"13a"`): sacrebleu's tokenizer: `"13a"` for most languages, `"zh"` for Chinese,
            `"char"` for any language without spaces. `"ja-mecab"` and `"ko-mecab"` need sacrebleu's extras; `"spm"` and
            `"flores200"` download a model.
        lowercase (`bool`, defaults to `False`): whether to ignore case.
    """

    def __init__(self, *, tokenize: str = "13a", lowercase: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        from sacrebleu.metrics import BLEU

        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"`tokenize` must be one of {sorted(BLEU.TOKENIZERS)}, got {tokenize!r}.")
        self.scorer = BLEU(tokenize=tokenize, lowercase=lowercase)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        score = self._score(predictions, references)
        return {
            "bleu": float(score.score),
            "precisions": [float(precision) for precision in score.precisions],
            "brevity_penalty": float(score.bp),
            "signature": str(self.scorer.get_signature()),
        }


@register_metric("chrf")
class Chrf(_TranslationMetric):
    """
    chrF as computed by sacrebleu (Popović, 2015): F-score of character n-grams, from 0 to 100. It needs no tokenizer, so
    it works for Chinese without any option. `compute` also returns the `signature` to report with the score.

    Args:
        word_order (`int`, defaults to 0): length of the longest word n-gram; 2 gives chrF++.
        lowercase (`bool`, defaults to `False`): whether to ignore case.
    """

    def __init__(self, *, word_order: int = 0, lowercase: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        from sacrebleu.metrics import CHRF

        if not isinstance(word_order, int) or word_order < 0:
            raise ValueError(f"`word_order` must be a non-negative integer, got {word_order!r}.")
        self.scorer = CHRF(word_order=word_order, lowercase=lowercase)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        score = self._score(predictions, references)
        return {"chrf": float(score.score), "signature": str(self.scorer.get_signature())}
