"""
References to the parts that a checkpoint leaves out: what a `config.json` may say about them.

A reference is read from a file that somebody else may have written, and its items become arguments of `from_pretrained`.
Only those that say which files to load are allowed; everything else, above all whether code of the repository may run, is
decided by the caller.
"""

from typing import Any

from .hub_arguments import PART_FILE_ARGUMENTS


# `name_or_path` of a part, and the arguments of its `from_pretrained` that select its files.
Reference = dict[str, str | None]

PART_NAMES = ("speech_tower", "sound_tower", "language_model")
REFERENCE_FIELDS = ("name_or_path", *PART_FILE_ARGUMENTS)


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
            f"`frozen_references` must be a dictionary of references by the name of the part, got {references!r}."
        )
    for part, reference in references.items():
        if part not in PART_NAMES:
            raise ValueError(
                f"`frozen_references` has a reference for {part!r}, which is not a part of the model; the parts are "
                f"{', '.join(PART_NAMES)}."
            )
        _check_reference(f"`frozen_references[{part!r}]`", reference)


def _check_reference(name: str, reference: Any) -> None:
    if not isinstance(reference, dict):
        raise ValueError(f"{name} must be a dictionary with the item 'name_or_path', got {reference!r}.")
    unknown = [field for field in reference if field not in REFERENCE_FIELDS]
    if unknown:
        raise ValueError(
            f"{name} has the items {unknown}, but a reference may only contain {', '.join(REFERENCE_FIELDS)}. Pass other "
            "arguments to `from_pretrained` yourself; a checkpoint cannot set them."
        )
    for field, value in reference.items():
        if not (isinstance(value, str) or (value is None and field != "name_or_path")):
            raise ValueError(f"{name} has {value!r} as its {field!r}, which must be a string.")
    if not reference.get("name_or_path"):
        raise ValueError(f"{name} does not say where the part is: its 'name_or_path' is missing or empty.")
