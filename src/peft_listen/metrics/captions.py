"""Captioning metric: ROUGE-L. CIDEr is in `cider`.

METEOR and SPICE are not here. Both need Java or, for METEOR by NLTK, the WordNet corpus, which is not published as a Python
package; BERT-based metrics need models. aac-metrics computes them.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from .base import BaseMetric
from .registry import register_metric


@register_metric("rouge_l")
class RougeL(BaseMetric):
    """
    ROUGE-L (Lin, 2004) as computed by Google's rouge-score: F1 of the longest common subsequence of words, from 0 to 1.
    Each row's score is that of its best reference; the result is the mean over the rows. Case and punctuation are
    ignored.

    Words are sequences of the letters a to z and digits, so the metric is meant for English. A reference without such a
    word, or with more other letters than these, raises an error.

    Args:
        use_stemmer (`bool`, defaults to `False`): whether to apply Porter's stemmer, so that "barks" matches "barking".
    """

    library = "rouge_score.rouge_scorer"
    takes_several_references = True

    def __init__(self, *, use_stemmer: bool = False, **settings: Any) -> None:
        super().__init__(**settings)
        from rouge_score.rouge_scorer import RougeScorer
        from rouge_score.tokenizers import DefaultTokenizer

        self.tokenizer = DefaultTokenizer(use_stemmer)
        self.scorer = RougeScorer(["rougeL"], tokenizer=self.tokenizer)

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if not self.tokenizer.tokenize(value):
            raise ValueError(
                f"`{name}` contains no word of letters a to z or digits ({value!r}). Leave the row out, or use "
                "`chrf` for other languages."
            )
        letters = [character for character in value if unicodedata.category(character)[0] in "LM"]
        if sum(not letter.isascii() for letter in letters) > len(letters) / 2:
            raise ValueError(
                f"Most letters of `{name}` are not among a to z ({value!r}), and ROUGE-L would ignore them. Use `chrf` for "
                "other languages."
            )
        return value

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = [
            self.scorer.score_multi(alternatives, prediction)["rougeL"].fmeasure
            for prediction, alternatives in zip(predictions, references, strict=True)
        ]
        return {"rouge_l": float(sum(scores) / len(scores))}
