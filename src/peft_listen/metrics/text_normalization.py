"""Normalization of answers and of transcripts before they are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Any

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE


# Marks that end a sentence or a clause, and quotation marks; not all Unicode punctuation: "50%" differs from "50".
TRAILING_PUNCTUATION = ".,;:!?…\"'”’»。，、；：！？．」』"  # noqa: RUF001

# Characters that select a variant of the glyph before them, stretch an Arabic word or set the direction of writing.
_INVISIBLE = re.compile(
    "[\u034f\u0640\u061c\u17b4\u17b5\u180b-\u180d\u180f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufe00-\ufe0f\ufeff"
    "\U000e0100-\U000e01ef]"
)

# Zero width non-joiner and joiner. They distinguish words in Persian, Malayalam and Sinhala.
_JOINERS = "\u200c\u200d"

# Hebrew accents and points, and the Arabic vowel signs, doubling and Quranic marks. Hamza and madda are not among them.
_OPTIONAL_POINTS = re.compile(
    "[\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u0652\u0670\u06d6-\u06dc\u06df-\u06e4"
    "\u06e7\u06e8\u06ea-\u06ed]"
)

# What NFKC makes of the stand-alone Japanese sound marks: a space and the mark that belongs to the kana before it.
_SOUND_MARK = re.compile(" ([\u3099\u309a])")

# Languages that are written without spaces between words, by Whisper's codes. Whisper's paper names the first five.
WITHOUT_SPACES = ("zh", "ja", "th", "lo", "my", "yue", "km", "bo")

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

    `"basic"` follows Whisper's language-independent normalizer (`BasicTextNormalizer` in transformers): it converts to
    lower case and NFKC, removes words in brackets, replaces symbols and punctuation (including the apostrophe) by spaces,
    and collapses spaces. For English the results are the same.

    Unlike Whisper's, it keeps combining marks, which Whisper's replaces by spaces. In many scripts marks are letters of
    the word: vowel signs and viramas in Devanagari, Bengali, Tamil and their relatives, vowels and tones in Thai, Lao,
    Khmer and Burmese, tones in Yoruba. Without them, दाल (lentils) equals दिल (heart), and every word falls into pieces,
    which makes word error rates incomparable too. Error rates in such languages are therefore not comparable with
    published ones that use Whisper's normalizer.

    Args:
        normalizer (`str`, `Callable[[str], str]` or `None`):
            `"basic"`: see above. Arabic and Hebrew vowel points are kept, so a pointed text differs from the same text
            without points. `"unpointed"`: like `"basic"`, but removes the points that everyday Arabic and Hebrew leave
            out; use it if only the references or only the predictions are pointed. `"english"`: the English normalizer of
            Whisper's paper (`EnglishTextNormalizer` in transformers), which also writes out contractions and titles, writes
            numbers in digits and drops hesitations, but without its table of British spellings, which is a file of
            Whisper's checkpoints: pass `WhisperTokenizer.normalize` for the whole. `None`: the text unchanged except for
            surrounding white space. A function is applied as given.

    Returns:
        `Callable[[str], str]`: the function; its results have no surrounding white space.

    Raises:
        ValueError: if `normalizer` is none of these.

    ```python
    >>> from peft_listen.metrics.text_normalization import get_normalizer
    >>> get_normalizer("basic")("दाल, चावल!")
    'दाल चावल'

    ```
    """
    normalize: Normalizer
    if normalizer is None:
        return str.strip
    if normalizer == "basic":
        normalize = _whisper_normalizer(_remove_symbols)
    elif normalizer == "unpointed":
        normalize = _whisper_normalizer(lambda text: _OPTIONAL_POINTS.sub("", _remove_symbols(text)))
    elif normalizer == "english":
        normalize = EnglishTextNormalizer({})
    elif callable(normalizer):
        normalize = normalizer
    else:
        raise ValueError(
            f'`normalizer` must be "basic", "english", None or a function from `str` to `str`, or "unpointed" for Arabic and '
            f"Hebrew; got {normalizer!r}."
        )
    return lambda text: normalize(text).strip()


def language_code(language: str) -> str:
    """
    Returns Whisper's code of a language: that of `"zh-CN"` is `"zh"`.

    Args:
        language (`str`): a code such as `"en"`, with or without a region, or an English name such as `"english"`.

    Raises:
        ValueError: if Whisper does not know the language.
    """
    name = language.lower() if isinstance(language, str) else ""
    code = TO_LANGUAGE_CODE.get(name, re.split("[-_]", name)[0])
    if code not in LANGUAGES:
        raise ValueError(
            f"`language` must be a code or a name that Whisper knows, such as 'en', 'zh' or 'english', got {language!r}. "
            "For another language, leave it out."
        )
    return code


def _whisper_normalizer(clean: Normalizer) -> Normalizer:
    normalizer: Any = BasicTextNormalizer()
    normalizer.clean = clean
    return normalizer


def _remove_symbols(text: str) -> str:
    """
    Converts to NFKC and replaces symbols and punctuation by spaces. Marks and joiners are kept where they belong to a
    letter or a digit, and removed elsewhere, as after an emoji.
    """
    cleaned: list[str] = []
    follows_letter = False
    for character in unicodedata.normalize("NFC", _SOUND_MARK.sub(r"\1", unicodedata.normalize("NFKC", text))):
        category = unicodedata.category(character)
        if _INVISIBLE.fullmatch(character):
            continue
        if category in ("Mn", "Mc") or character in _JOINERS:
            # The lower case of the Turkish I with a dot is an i with a dot of its own.
            is_second_dot = character == "\u0307" and cleaned and cleaned[-1] in "ij"
            if follows_letter and not is_second_dot:
                cleaned.append(character)
        elif category[0] in "MSP":
            follows_letter = False
            cleaned.append(" ")
        else:
            follows_letter = not character.isspace()
            cleaned.append(character)
    return "".join(cleaned)
