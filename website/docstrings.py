"""
From docstrings as Hugging Face's libraries write them to Markdown.

Their entries, "name (`type`, *optional*, defaults to 1): text", fit none of griffe's docstring styles, and their references,
"[`Class`]", are no links in Markdown. The entries become lists, and the references links or code.
"""

import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass


HEADINGS = {
    "Args": "Parameters",
    "Attributes": "Attributes",
    "Class attributes": "Class attributes",
    "Example": "Example",
    "Raises": "Raises",
    "Returns": "Returns",
    "Yields": "Yields",
}
# The sections that consist of entries; the others are text.
ENTRIES = ("Args", "Attributes", "Class attributes", "Raises")
HEADER = re.compile(rf"^({'|'.join(HEADINGS)}):$")
NAMES = re.compile(r"(?:, )?(`?\*{0,2}[\w.]+`?(?:(?:, | or )`?\*{0,2}[\w.]+`?)*)\s*(?=[(:])")
REFERENCE = re.compile(r"\[`(~?)([\w.]+)(\(\))?`\](?![(\[])")
FENCE = re.compile(r"^\s*```")


def to_markdown(docstring: str, resolve: Callable[[str], str | None] = lambda name: None) -> str:
    """
    Converts a docstring without its indentation.

    Args:
        docstring (`str`): the docstring.
        resolve (`Callable`, *optional*): gives the documented path of a name in "[`name`]", or `None` if it has no page of
            its own; such a name becomes code without a link.

    Returns:
        `str`: Markdown, with a heading in bold for each section, and a list of its entries.
    """
    parts = []
    for header, content in sections_of(docstring):
        if header is None:
            parts.append(_with_blank_lines(content))
            continue
        parts.append(f"**{HEADINGS[header]}**")
        entries = entries_of(content) if header in ENTRIES else None
        parts.append(_with_blank_lines(content) if entries is None else "\n\n".join(map(_list_item, entries)))
    return _link("\n\n".join(part for part in parts if part), resolve)


def sections_of(docstring: str) -> list[tuple[str | None, str]]:
    """Header, or `None` for text outside of sections, and content of each section."""
    sections: list[tuple[str | None, list[str]]] = [(None, [])]
    in_code = False
    for line in docstring.splitlines():
        in_code ^= FENCE.match(line) is not None
        header = None if in_code else HEADER.match(line)
        if header:
            sections.append((header[1], []))
            continue
        if sections[-1][0] is not None and line and not line.startswith(" "):
            sections.append((None, []))
        sections[-1][1].append(line)
    return [(header, textwrap.dedent("\n".join(lines)).strip("\n")) for header, lines in sections]


@dataclass(frozen=True)
class Entry:
    """
    What a section says about one or several names.

    Attributes:
        names (`list[tuple[str, str]]`): names that share a type, and the type; it is empty if none is given.
        text (`str`): what is said.
    """

    names: list[tuple[str, str]]
    text: str


def entries_of(content: str) -> list[Entry] | None:
    """The entries of a section without its indentation; `None` if the content is something else."""
    blocks: list[list[str]] = []
    for line in content.splitlines():
        if line and not line.startswith(" "):
            blocks.append([line])
        elif not blocks:
            return None
        else:
            blocks[-1].append(line)
    entries = [_entry("\n".join(lines)) for lines in blocks]
    return None if None in entries else [entry for entry in entries if entry is not None]


def _entry(block: str) -> Entry | None:
    names, rest = [], block
    while found := NAMES.match(rest):
        kind, rest = "", rest[found.end() :]
        if rest.startswith("("):
            end = _closing_parenthesis(rest)
            if end is None:
                return None
            kind, rest = " ".join(rest[1:end].split()), rest[end + 1 :]
        names.append((found[1].replace("`", ""), kind))
        if not rest.startswith(", "):
            break
    if not names or not (rest.startswith(":") or not rest.strip()):
        return None
    first, _, others = rest[1:].partition("\n")
    return Entry(names, f"{first.strip()}\n{textwrap.dedent(others)}".strip("\n"))


def _closing_parenthesis(text: str) -> int | None:
    depth = 0
    for index, character in enumerate(text):
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth == 0:
            return index
    return None


def _list_item(entry: Entry) -> str:
    heads = []
    for names, kind in entry.names:
        escaped = names.replace("*", r"\*").replace("_", r"\_")
        heads.append(f"**{escaped}**" + (f" ({kind})" if kind else ""))
    item = f"- {', '.join(heads)}" + (f": {_with_blank_lines(entry.text)}" if entry.text else "")
    first, *others = item.splitlines()
    return "\n".join([first, *(f"    {line}" if line else "" for line in others)])


def _with_blank_lines(text: str) -> str:
    """Markdown begins a list only after a blank line."""
    lines: list[str] = []
    in_code = False
    for line in text.splitlines():
        in_code ^= FENCE.match(line) is not None
        begins_list = re.match(r"\s*([-*]|\d+\.) ", line) and not in_code
        if begins_list and lines and lines[-1] and not re.match(r"\s*([-*]|\d+\.) |\s{2,}", lines[-1]):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)


def _link(markdown: str, resolve: Callable[[str], str | None]) -> str:
    def replace(match: re.Match[str]) -> str:
        short, name, call = match[1], match[2], match[3] or ""
        shown = f"`{name.rpartition('.')[2] if short else name}{call}`"
        path = resolve(name)
        return shown if path is None else f"[{shown}][{path}]"

    lines, in_code = [], False
    for line in markdown.split("\n"):
        in_code ^= FENCE.match(line) is not None
        lines.append(line if in_code else REFERENCE.sub(replace, line))
    return "\n".join(lines)
