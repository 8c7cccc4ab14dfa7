"""Normalization of answers and of transcripts before they are compared."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable

from transformers.models.whisper.english_normalizer import BasicTextNormalizer


# Marks that end a sentence or a clause, and quotation marks; not all Unicode punctuation: "50%" differs from "50".
TRAILING_PUNCTUATION = ".,;:!?…\"'”’»。，、；：！？．」』"  # noqa: RUF001

Normalizer = Callable[[str], str]


def normalize_answer(text: str) -> str:
    """
    Removes differences that a human grader would ignore: case, surrounding and repeated white space, and trailing
    punctuation. Canonically equivalent characters (é as one or two code points) become equal.

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
    Returns the function that is applied to predictions and references before transcripts are compared.

    Args:
        normalizer (`str`, `Callable[[str], str]` or `None`):
            `"basic"`: Whisper's language-independent normalizer from transformers. It converts to lower case and NFKC,
            removes words in brackets, replaces marks, symbols and punctuation (including the apostrophe) by spaces, and
            collapses spaces. `None`: the text unchanged except for surrounding white space. A function is applied as
            given; pass `WhisperTokenizer.normalize` for the English normalizer of Whisper's paper (contractions,
            numbers, British spelling).

    Returns:
        `Callable[[str], str]`: the function; its results have no surrounding white space.

    Raises:
        ValueError: if `normalizer` is none of these.
    """
    normalize: Normalizer
    if normalizer is None:
        return str.strip
    if normalizer == "basic":
        normalize = BasicTextNormalizer()
    elif callable(normalizer):
        normalize = normalizer
    else:
        raise ValueError(f'`normalizer` must be "basic", None or a function from `str` to `str`, got {normalizer!r}.')
    return lambda text: normalize(text).strip()
