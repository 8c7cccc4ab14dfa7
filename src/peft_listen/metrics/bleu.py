"""BLEU of translations."""

from __future__ import annotations

import itertools
from typing import Any

from .base import BaseMetric
from .registry import register_metric


@register_metric("bleu")
class Bleu(BaseMetric):
    """
    Corpus BLEU by sacrebleu (arXiv 1804.08771), from 0 to 100. `precisions` (of n-grams of 1 to 4 tokens),
    `brevity_penalty` and the `signature` to report beside the number are returned too.

    Args:
        tokenize (`str`, defaults to `"13a"`): sacrebleu's tokenizer: `"13a"` for most languages, `"zh"` for Chinese,
            `"char"` for any language without spaces. `"ja-mecab"` and `"ko-mecab"` need sacrebleu's extras, `"spm"` and
            `"flores200"` download a model.
        lowercase (`bool`, defaults to `False`): whether case does not count.
    """

    library = "sacrebleu"
    takes_several_references = True

    def __init__(self, *, tokenize: str = "13a", lowercase: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        from sacrebleu.metrics import BLEU

        if tokenize not in BLEU.TOKENIZERS:
            raise ValueError(f"`tokenize` must be one of {sorted(BLEU.TOKENIZERS)}, got {tokenize!r}.")
        self.scorer = BLEU(tokenize=tokenize, lowercase=lowercase)

    def _check_reference(self, value: Any, name: str) -> str:
        return check_translation(super()._check_reference(value, name), name)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        score = self.scorer.corpus_score(predictions, reference_streams(references))
        return {
            "bleu": float(score.score),
            "precisions": [float(precision) for precision in score.precisions],
            "brevity_penalty": float(score.bp),
            "signature": str(self.scorer.get_signature()),
        }


def check_translation(value: str, name: str) -> str:
    """Returns a reference that is not empty, or raises a ValueError that calls it `name`."""
    if not value.strip():
        raise ValueError(f"`{name}` is empty ({value!r}), so no translation can match it. Leave the row out.")
    return value


def reference_streams(references: list[list[str]]) -> list[list[Any]]:
    """References by stream (the first of every row, the second, ...), as sacrebleu takes them; rows may have fewer."""
    return [list(stream) for stream in itertools.zip_longest(*references)]
