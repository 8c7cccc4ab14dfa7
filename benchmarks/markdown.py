"""Writes generated text between markers in a Markdown file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from peft_listen.files import atomic_path


def markers(name: str) -> tuple[str, str]:
    """The lines before and after the text of this name."""
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def with_texts(markdown: str, texts: Mapping[str, str]) -> str:
    """
    Replaces texts between their markers.

    Args:
        markdown (`str`): Content of the file.
        texts (`Mapping[str, str]`): Texts by the names of their markers.

    Raises:
        ValueError: if it lacks one of the markers; the message says which.
    """
    for name, text in texts.items():
        begin, end = markers(name)
        before, marker, rest = markdown.partition(begin)
        _, end_marker, after = rest.partition(end)
        if not marker or not end_marker:
            raise ValueError(f"There is no place for a table. Add the lines {begin} and {end}.")
        markdown = f"{before}{begin}\n\n{text}\n\n{end}{after}"
    return markdown


def write_texts(path: Path, texts: Mapping[str, str]) -> None:
    """
    Replaces texts between their markers in a file.

    Raises:
        ValueError: as [`with_texts`], with the name of the file.
    """
    try:
        content = with_texts(path.read_text(encoding="utf-8"), texts)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
