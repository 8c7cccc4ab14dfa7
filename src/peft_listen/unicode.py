"""Validity of texts: Python strings may contain half surrogate pairs, which cannot be encoded as UTF-8."""

from __future__ import annotations


def half_surrogate_problem(text: str, is_path: bool = False) -> str | None:
    """
    Describes the first half surrogate pair of a text, such as the JSON string `"\\ud83d"` contains.

    Tokenizers, Arrow tables and UTF-8 files cannot process such a text.

    Args:
        text (`str`): text to examine.
        is_path (`bool`, defaults to `False`): whether the text is a path, in which Python represents the bytes of a name
            that is not UTF-8 by the second halves U+DC80 to U+DCFF.

    Returns:
        `str` or `None`: the problem as the end of a sentence whose subject is the text, or `None` for a valid text.
    """
    try:
        text.encode(errors="surrogateescape" if is_path else "strict")
    except UnicodeEncodeError as error:
        return (
            f"contains half a surrogate pair ({text[error.start]!r} at character {error.start + 1}), which is not a "
            "character. Write the character itself or both halves of the pair."
        )
    return None
