"""Sections of model cards that are written again when the model changes: the parts, the training and the scores."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load

from .hub_names import is_hub_name
from .markdown import markdown_table


if TYPE_CHECKING:
    from .metrics import TaskScore

# Bytes of a README.md beyond which it is not read.
_MAX_BYTES = 1 << 20
# Identifiers of licenses on the Hub, and names of licenses that have none.
_LICENSE = re.compile(r"[\w.+-]{1,64}", re.ASCII)

# Keys of the references to the parts, in the order of the table.
_PARTS = {"language_model": "language model", "speech_tower": "speech encoder", "sound_tower": "sound encoder"}

# Item of the settings of a training that is shown below the table.
_COMMAND = "command"

# What a command in a card has in place of the folders of the machine on which it was run.
PLACE = "path/to/"


def put_section(card: ModelCard, heading: str, body: str) -> None:
    """
    Adds a section to a card, before the citation, or replaces what this function has written under this heading.

    Args:
        card (`ModelCard`): the card, which is changed.
        heading (`str`): heading of the section.
        body (`str`): its text in Markdown.
    """
    mark = heading.lower()
    first, last = f"<!-- {mark} -->", f"<!-- end of the {mark} -->"
    section = f"{first}\n## {heading}\n\n{body}\n{last}"
    begin, end = card.text.find(first), card.text.find(last)
    if -1 < begin < end:
        card.text = card.text[:begin] + section + card.text[end + len(last) :]
    else:
        before, citation, after = card.text.partition("\n## Citation")
        card.text = f"{before.rstrip()}\n\n{section}\n{citation}{after}"


def parts_table(base: Any) -> str | None:
    """
    A table of the published parts of an audio model, with their licenses: those that the README.md of a part's folder, or of
    its repository in the local cache of the Hub, names. Nothing is downloaded.

    Args:
        base (`nn.Module`): the base model.

    Returns:
        `str`: the table in Markdown; `None` if no part has a known source.
    """
    references = getattr(base, "frozen_references", None) or {}
    rows = []
    for part, title in _PARTS.items():
        reference = references.get(part) or {}
        name = reference.get("name_or_path")
        if not name:
            continue
        on_hub = is_hub_name(name)
        # The path of a folder is of no use to others.
        shown = f"[{name}](https://huggingface.co/{name})" if on_hub else f"`{Path(name).name}` (a local copy)"
        license_name = _license(name, reference.get("revision"))
        if license_name is None:
            license_name = (
                f"its license applies: [model card](https://huggingface.co/{name})"
                if on_hub
                else "its license applies"
            )
        rows.append((title, shown, license_name))
    return markdown_table(("part", "source", "license"), rows) if rows else None


def training_text(settings: Mapping[str, Any]) -> str:
    """
    A table of the settings of a training, and below it the command that repeats it.

    Args:
        settings (`Mapping[str, Any]`): the settings by name. The item `"command"` is shown below the table.
    """
    table = markdown_table(
        ("setting", "value"), [(name, value) for name, value in settings.items() if name != _COMMAND]
    )
    command = settings.get(_COMMAND)
    if not command:
        return table
    places = (
        f"\n\n`{PLACE}` stands for the folder on your machine that contains what is named after it: data, or a model that was "
        "loaded from a local folder."
        if PLACE in command
        else ""
    )
    return f"{table}\n\nThe same training again:\n\n```bash\n{command}\n```{places}"


def scores_table(scores: Mapping[str, TaskScore]) -> str:
    """
    A table of scores.

    Args:
        scores (`Mapping[str, TaskScore]`): scores by the name of the task.
    """
    rows = [
        (task, score.counted_rows, metric, f"{score.values[metric]:.4g}")
        for task, score in scores.items()
        for metric in score.shown_metrics
    ]
    return markdown_table(("task", "rows", "metric", "value"), rows)


def _license(name: str, revision: str | None) -> str | None:
    """The license that a part's own card names, if the card is on this machine."""
    if os.path.isdir(name):
        path: Any = os.path.join(name, "README.md")
    elif is_hub_name(name):
        path = try_to_load_from_cache(name, "README.md", revision=revision)
    else:
        return None
    if not isinstance(path, str) or not os.path.isfile(path) or os.path.getsize(path) > _MAX_BYTES:
        return None
    try:
        data = metadata_load(path)
    except Exception:  # a card that somebody else wrote, in any state
        return None
    if not isinstance(data, dict):
        return None
    # "other" says that `license_name` has it.
    names = (
        [data.get("license_name"), data.get("license")] if data.get("license") == "other" else [data.get("license")]
    )
    return next((each for each in names if isinstance(each, str) and _LICENSE.fullmatch(each)), None)
