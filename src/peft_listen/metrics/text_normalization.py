"""What counts as the same text: of answers, and of transcripts."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from transformers.models.whisper.english_normalizer import BasicTextNormalizer


# Marks that end a sentence or a clause, and quotation marks. Not the whole of Unicode's punctuation: "50%" is not "50".
TRAILING_PUNCTUATION = ".,;:!?…\"'”’»。，、；：！？．」』"  # noqa: RUF001

Normalizer = Callable[[str], str]


def normalize_answer(text: str) -> str:
    """
    An answer without what a grader would overlook: case, white space around it, runs of white space within it, and
    punctuation at its end. Canonically equivalent characters (é in one code point or two) become the same.

    ```python
    >>> from peft_listen.metrics.text_normalization import normalize_answer
    >>> normalize_answer("  Two  Dogs\\nbark. ")
    'two dogs bark'

    ```
    """
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFD", text).casefold())
    text = " ".join(folded.split())
    return text.rstrip(TRAILING_PUNCTUATION + " ")


def get_normalizer(normalizer: str | Normalizer | None) -> Normalizer:
    """
    The function that is applied to both sides before transcripts are compared.

    Args:
        normalizer (`str`, `Callable[[str], str]` or `None`):
            `"basic"`: Whisper's normalizer for any language, as in transformers: lower case, compatibility characters
            (NFKC), no words in brackets, marks, symbols and punctuation (the apostrophe too) as spaces, single spaces.
            `None`: the text as it is, but for white space at its ends. Or a function of your own; for English as in
            Whisper's paper (contractions, numbers, British spelling), `WhisperTokenizer.normalize`.

    Raises:
        ValueError: if it is none of these.
    """
    chosen: Normalizer | None
    if normalizer is None:
        return str.strip
    if normalizer == "basic":
        chosen = BasicTextNormalizer()
    elif callable(normalizer):
        chosen = normalizer
    else:
        raise ValueError(f'`normalizer` must be "basic", None or a function from str to str, got {normalizer!r}.')
    return lambda text: chosen(text).strip()
