"""Tables in Markdown, of scores and in model cards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """
    Formats a table.

    Args:
        header (`Sequence[str]`): names of the columns.
        rows (`Sequence[Sequence[Any]]`): one value for each column. Line breaks and `|` cannot end a cell.

    Returns:
        `str`: the table, without a line break at its end.
    """
    lines = [f"| {' | '.join(map(_cell, line))} |" for line in (header, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(header)}", *lines[1:]])


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")
