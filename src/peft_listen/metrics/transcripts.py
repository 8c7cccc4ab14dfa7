"""Transcription metrics: word and character error rate."""

from __future__ import annotations

from typing import Any

from .base import BaseMetric
from .registry import register_metric
from .text_normalization import WITHOUT_SPACES, Normalizer, get_normalizer, language_code


class _ErrorRate(BaseMetric):
    library = "jiwer"
    higher_is_better = False

    def __init__(
        self, *, normalizer: str | Normalizer | None = "basic", language: str | None = None, **settings: Any
    ) -> None:
        super().__init__(**settings)
        self.language = None if language is None else language_code(language)
        if self.language == "en":
            if normalizer != "basic":
                raise ValueError(
                    f"The language 'en' has its normalizer, \"english\", but `normalizer` is {normalizer!r}. Pass one of them."
                )
            normalizer = "english"
        self.normalizer = get_normalizer(normalizer)

    def _check_reference(self, value: Any, name: str) -> str:
        value = super()._check_reference(value, name)
        if not self.normalizer(value):
            raise ValueError(
                f"`{name}` is empty after normalization ({value!r}), so its error rate is undefined. Leave the row "
                "out."
            )
        return value

    def _normalized(self, texts: list[str]) -> list[str]:
        return [self.normalizer(text) for text in texts]


@register_metric("wer")
class Wer(_ErrorRate):
    """
    Word error rate of the whole corpus: (substitutions + deletions + insertions) / number of reference words, after
    normalization. 0 is perfect; the value can exceed 1. `compute` also returns the three counts and `hits`.

    Use [`Cer`] for languages that are written without spaces.

    Args:
        normalizer (`str`, `Callable[[str], str]` or `None`, defaults to `"basic"`): see [`get_normalizer`].
        language (`str`, *optional*): language of the transcripts, such as `"en"`, to do what Whisper's paper does for it:
            English has the normalizer `"english"`, and languages without spaces raise an error that names `cer`.
    """

    def __init__(
        self, *, normalizer: str | Normalizer | None = "basic", language: str | None = None, **settings: Any
    ) -> None:
        super().__init__(normalizer=normalizer, language=language, **settings)
        if self.language in WITHOUT_SPACES:
            raise ValueError(
                f"The language {language!r} is written without spaces, so words cannot be counted. Use "
                f'`get_metric("cer", language={language!r})`.'
            )

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        import jiwer

        output = jiwer.process_words(self._normalized(references), self._normalized(predictions))
        return {"wer": output.wer, **_counts(output)}


@register_metric("cer")
class Cer(_ErrorRate):
    """
    Character error rate of the whole corpus: (substitutions + deletions + insertions) / number of reference characters,
    including single spaces, after normalization. A character is a Unicode code point, so a vowel sign counts as one.
    0 is perfect; the value can exceed 1. `compute` also returns the three counts and `hits`.

    Args:
        normalizer (`str`, `Callable[[str], str]` or `None`, defaults to `"basic"`): see [`get_normalizer`].
        language (`str`, *optional*): language of the transcripts, such as `"zh"`, to do what Whisper's paper does for it:
            English has the normalizer `"english"`, and in languages without spaces, spaces do not count.
    """

    def _normalized(self, texts: list[str]) -> list[str]:
        texts = super()._normalized(texts)
        return ["".join(text.split()) for text in texts] if self.language in WITHOUT_SPACES else texts

    def _compute(self, predictions: list[str], references: list[str]) -> dict[str, Any]:
        import jiwer

        output = jiwer.process_characters(self._normalized(references), self._normalized(predictions))
        return {"cer": output.cer, **_counts(output)}


def _counts(output: Any) -> dict[str, int]:
    return {name: int(getattr(output, name)) for name in ("substitutions", "deletions", "insertions", "hits")}
