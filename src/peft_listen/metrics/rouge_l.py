"""ROUGE-L of captions.

CIDEr and SPIDEr, with which audio captions are often reported, have no light library: pycocoevalcap is a wheel of 100 MB
with Java programs, aac-metrics brings CLAP and sentence-transformers. ROUGE-L runs anywhere and is bounded.
"""

from __future__ import annotations

from typing import Any

from .base import BaseMetric
from .registry import register_metric


@register_metric("rouge_l")
class RougeL(BaseMetric):
    """
    ROUGE-L (Lin, 2004) by Google's rouge-score: F1 of the longest common subsequence of words, from 0 to 1, the best
    of a row's references, averaged over the rows. Case and punctuation do not count.

    Its words are runs of the letters a to z and digits, so it is for English: a reference without any is refused.

    Args:
        use_stemmer (`bool`, defaults to `False`): whether "barks" counts as "barking" (Porter's stemmer).
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
                f"`{name}` holds no word of letters a to z or digits ({value!r}). Leave the row out; for other "
                "languages use `chrf`."
            )
        return value

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        scores = [
            self.scorer.score_multi(alternatives, prediction)["rougeL"].fmeasure
            for prediction, alternatives in zip(predictions, references, strict=True)
        ]
        return {"rouge_l": float(sum(scores) / len(scores))}
