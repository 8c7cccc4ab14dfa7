"""
References to the parts that a checkpoint leaves out: what a `config.json` may say about them.

A reference is read from a file that somebody else may have written, and its items become arguments of `from_pretrained`.
Only those that say which files to load are allowed; everything else, above all whether code of the repository may run, is
decided by the caller.
"""

import re
import reprlib
import unicodedata
from typing import Any

from ...audio import display_name
from ...unicode import half_surrogate_problem
from .hub_arguments import PART_FILE_ARGUMENTS


# `name_or_path` of a part, and the arguments of its `from_pretrained` that select its files.
Reference = dict[str, str | None]

PART_NAMES = ("speech_tower", "sound_tower", "language_model")
REFERENCE_FIELDS = ("name_or_path", *PART_FILE_ARGUMENTS)

# Longest path of Linux.
_MAX_CHARACTERS = 4096
# Two letters at least: one is a drive of Windows. `pathlib` makes one slash of two.
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_ABSOLUTE = re.compile(r"[/\\~]|[a-z]:", re.IGNORECASE)
# Control characters, and separators of lines and paragraphs.
_CONTROLS = ("Cc", "Zl", "Zp")


class _Shown(reprlib.Repr):
    """`repr` for messages: bounded in length, and without the credentials of URLs."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 200

    def repr_str(self, text: str, level: int) -> str:
        # Anywhere in the text, and with any number of slashes.
        scheme, separator, rest = text.partition(":/")
        if separator:
            address = rest.lstrip("/")
            slashes = rest[: len(rest) - len(address)]
            text = f"{scheme}{separator}{slashes}{display_name(f'url://{address}').removeprefix('url://')}"
        return super().repr_str(text, level)


_shown = _Shown().repr


def check_references(references: Any) -> None:
    """
    Checks the references of a configuration.

    Args:
        references (`dict[str, dict]`, *optional*): References by the name of the part.

    Raises:
        `ValueError`: if they are malformed, or contain anything but the name of a part, its source and the names of its
            files; the message names the item.
    """
    if references is None:
        return
    if not isinstance(references, dict):
        raise ValueError(
            f"`frozen_references` must be a dictionary of references by the name of the part, got {_shown(references)}."
        )
    for part, reference in references.items():
        if part not in PART_NAMES:
            raise ValueError(
                f"`frozen_references` has a reference for {_shown(part)}, which is not a part of the model; the parts are "
                f"{', '.join(PART_NAMES)}."
            )
        _check_reference(f"`frozen_references[{part!r}]`", reference)


def _check_reference(name: str, reference: Any) -> None:
    if not isinstance(reference, dict):
        raise ValueError(f"{name} must be a dictionary with the item 'name_or_path', got {_shown(reference)}.")
    unknown = [field for field in reference if field not in REFERENCE_FIELDS]
    if unknown:
        raise ValueError(
            f"{name} has the items {_shown(unknown)}, but a reference may only contain {', '.join(REFERENCE_FIELDS)}. Pass other "
            "arguments to `from_pretrained` yourself; a checkpoint cannot set them."
        )
    for field, value in reference.items():
        if not (isinstance(value, str) or (value is None and field != "name_or_path")):
            raise ValueError(f"{name} has {_shown(value)} as its {field!r}, which must be a string.")
    if not reference.get("name_or_path"):
        raise ValueError(f"{name} does not say where the part is: its 'name_or_path' is missing or empty.")
    for field, value in reference.items():
        problem = _problem(field, value) if value else None
        if problem is not None:
            expected = "a name on the Hub or the path of a folder" if field == "name_or_path" else f"a {field}"
            raise ValueError(
                f"{name} has {_shown(value)} as its {field!r}, which {problem}. Expected {expected}. Correct the "
                "reference, or pass the source of the part to `from_pretrained`."
            )


def _problem(field: str, value: str) -> str | None:
    """What is wrong with the text of a reference, as the end of a sentence, or `None`."""
    if len(value) > _MAX_CHARACTERS:
        return f"has {len(value)} characters, more than a path can have"
    if not value.strip():
        return "is blank"
    controls = [character for character in value if unicodedata.category(character) in _CONTROLS]
    if controls:
        return f"contains the control character {controls[0]!r}"
    if value != value.strip():
        return "begins or ends with white space"
    if half_surrogate_problem(value):  # not in a path either: safetensors opens UTF-8 paths only
        return "contains half a surrogate pair"
    if _SCHEME.match(value) or value[:5].lower() == "data:":
        return "is a URL"
    # Names of revisions and files become paths in the cache of the Hub.
    if ".." in re.split(r"[/\\]", value):
        return "contains '..'"
    if field != "name_or_path" and _ABSOLUTE.match(value):
        return "is an absolute path"
    return None
