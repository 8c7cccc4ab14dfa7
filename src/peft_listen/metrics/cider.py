"""Captioning metric: CIDEr-D."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import Any

from .base import BaseMetric
from .registry import register_metric


# What PTBTokenizer separates from a word: "n't", "'s" and the like.
_CLITICS = re.compile(r"(?<=\w)(n't|'(?:s|re|ve|ll|d|m))\b")
_TOKENS = re.compile(r"n't\b|'(?:s|re|ve|ll|d|m)\b|\d+(?:[.,:]\d+)+|\w+(?:[-/]\w+)*")

MAX_NGRAM = 4
SIGMA = 6.0

NGram = tuple[str, ...]


@register_metric("cider")
class Cider(BaseMetric):
    """
    CIDEr-D (Vedantam et al., 2015), which audio captioning calls CIDEr, from 0 to 10: the similarity of the n-grams of a
    caption and its references, n = 1 to 4, weighted by their inverse frequency in the references of all rows, with a
    penalty for another length. The result is the mean over the rows.

    The value of a row therefore depends on the other rows: compute it on a whole test set. With one row all weights are
    0, so that raises an error.

    For the same words, values equal those of pycocoevalcap's scorer. The captioning tools find the words by a Java program
    (Stanford's PTBTokenizer) and remove punctuation; here a few rules do the same without Java: lower case, "n't", "'s" and
    the like separated, words with hyphens as one. They differ for parentheses, symbols, abbreviations with periods and
    "cannot" or "gonna". The words of languages without spaces cannot be found in this way.
    """

    takes_several_references = True

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if not tokenize_caption(value):
            raise ValueError(f"`{name}` contains no word ({value!r}). Leave the row out.")
        return value

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        if len(predictions) < 2:
            raise ValueError(
                "CIDEr weighs n-grams by their frequency in the references of all rows, and cannot be computed for one "
                "row. Pass a whole test set."
            )
        captions = [_Caption(tokenize_caption(text)) for text in predictions]
        alternatives = [[_Caption(tokenize_caption(text)) for text in texts] for texts in references]
        frequency: Counter[NGram] = Counter()
        for row in alternatives:
            frequency.update({ngram for caption in row for ngram in caption.counts})
        weights = {ngram: math.log(len(predictions) / count) for ngram, count in frequency.items()}
        unseen = math.log(len(predictions))
        for caption in (*captions, *(caption for row in alternatives for caption in row)):
            caption.weigh(weights, unseen)
        scores = [
            10 * sum(map(caption.similarity, row)) / len(row)
            for caption, row in zip(captions, alternatives, strict=True)
        ]
        return {"cider": sum(scores) / len(scores)}


class _Caption:
    """The n-grams of a caption and, once weighed, their vectors."""

    def __init__(self, words: list[str]) -> None:
        self.counts: Counter[NGram] = Counter(
            tuple(words[start : start + n]) for n in range(1, MAX_NGRAM + 1) for start in range(len(words) - n + 1)
        )
        # The reference implementation takes the number of bigrams for the length.
        self.length = max(len(words) - 1, 0)

    def weigh(self, weights: dict[NGram, float], unseen: float) -> None:
        self.vector = {ngram: count * weights.get(ngram, unseen) for ngram, count in self.counts.items()}
        self.norms = [0.0] * MAX_NGRAM
        for ngram, value in self.vector.items():
            self.norms[len(ngram) - 1] += value**2
        self.norms = [math.sqrt(square) for square in self.norms]

    def similarity(self, reference: _Caption) -> float:
        products = [0.0] * MAX_NGRAM
        for ngram, value in self.vector.items():
            # Clipped, so that repeating a word of the reference does not pay.
            other = reference.vector.get(ngram, 0.0)
            products[len(ngram) - 1] += min(value, other) * other
        cosines = [
            product / (own * other) if own and other else 0.0
            for product, own, other in zip(products, self.norms, reference.norms, strict=True)
        ]
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * SIGMA**2))
        return penalty * sum(cosines) / MAX_NGRAM


def tokenize_caption(text: str) -> list[str]:
    """
    Splits a caption into words, nearly as Stanford's PTBTokenizer does, without punctuation.

    ```python
    >>> from peft_listen.metrics.cider import tokenize_caption
    >>> tokenize_caption("A dog's high-pitched bark, which doesn't stop.")
    ['a', 'dog', "'s", 'high-pitched', 'bark', 'which', 'does', "n't", 'stop']

    ```
    """
    text = text.lower().replace("\u2019", "'")
    return _TOKENS.findall(_CLITICS.sub(r" \1", text))
