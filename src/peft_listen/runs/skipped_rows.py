"""The rows that a run leaves out because their clips cannot be loaded. A run that is continued leaves out the same ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data import Example, find_bad_clips
from ..data.bad_clips import without_bad_clips
from ..files import atomic_path
from ..processes import in_main_process
from ..training.feature_cache import find_uncacheable


_NAME = "skipped.json"
# Bytes beyond which the file is not read.
_MAX_BYTES = 1 << 30

# What is wrong with rows by their numbers, by the name of the split.
Problems = dict[str, dict[int, str]]


def find_skipped_rows(
    rows: Mapping[str, Sequence[Example]], folder: Path, feature_cache: str | None, is_begun: bool, show_progress: bool
) -> Problems:
    """
    Finds the rows of each split that have a clip that cannot be loaded, and stores them in the folder of the run. All processes
    have to call this function.

    Args:
        rows (`Mapping[str, Sequence[Example]]`): the rows of each split.
        folder (`pathlib.Path`): folder of the run.
        feature_cache (`str`, *optional*): folder of the feature cache.
        is_begun (`bool`): whether the run is continued, so that it leaves out the rows that were stored.
        show_progress (`bool`): whether to show a progress bar.

    Returns:
        `dict[str, dict[int, str]]`: what is wrong, by the split and the number of the row.

    Raises:
        ValueError: if the stored file is damaged.
        OSError: if it cannot be read or written.
    """
    stored = in_main_process(lambda: read_skipped_rows(folder, rows)) if is_begun else None
    if stored is not None:
        return stored
    problems = {
        split: find_bad_clips(each, show_progress=show_progress)
        if feature_cache is None or split == "test"  # the cache is for training
        else find_uncacheable(each, feature_cache, show_progress)
        for split, each in rows.items()
    }

    def write() -> None:
        with atomic_path(folder / _NAME) as temporary:
            temporary.write_text(json.dumps(problems, indent=1) + "\n", encoding="utf-8")

    in_main_process(write)
    return problems


def read_skipped_rows(folder: Path, rows: Mapping[str, Sequence[Example]]) -> Problems | None:
    """
    Reads what [`find_skipped_rows`] has stored.

    Args:
        folder (`pathlib.Path`): folder of the run.
        rows (`Mapping[str, Sequence[Example]]`): the rows of each split.

    Returns:
        `dict[str, dict[int, str]]`: what is wrong, by the split and the number of the row; `None` if nothing is stored.

    Raises:
        ValueError: if the file is damaged.
        OSError: if it cannot be read.
    """
    path = folder / _NAME
    if not path.exists():
        return None
    try:
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            raise ValueError("it is not a regular file, or too large")
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        return {split: _of_split(content[split], len(each)) for split, each in rows.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} does not list the skipped rows of this run ({error!r:.200}). Restore it, or set another `output_dir`."
        ) from error


def kept_rows(rows: Mapping[str, Sequence[Example]], problems: Problems) -> dict[str, list[Example]]:
    """
    The rows that are not left out. The others are counted in the log.

    Args:
        rows (`Mapping[str, Sequence[Example]]`): the rows of each split.
        problems (`dict[str, dict[int, str]]`): of [`find_skipped_rows`].

    Raises:
        ValueError: if no rows of a split are left, or none of a task that is to be scored.
    """
    kept = {split: without_bad_clips(each, problems[split], f"{split}_data") for split, each in rows.items()}
    for split in ("eval", "test"):
        if lost := sorted({row["task"] for row in rows[split]} - {row["task"] for row in kept[split]}):
            raise ValueError(
                f"No row of the tasks {lost} of {split}_data has a clip that can be loaded, so these tasks cannot be "
                "scored. Mend the clips, or leave the tasks out."
            )
    return kept


def _of_split(content: dict[str, str], num_rows: int) -> dict[int, str]:
    problems = {int(number): problem for number, problem in content.items()}
    if not all(0 <= number < num_rows and isinstance(problem, str) for number, problem in problems.items()):
        raise ValueError("it names rows that the data do not have")
    return problems
