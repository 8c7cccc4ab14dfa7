"""Rows whose clips cannot be loaded, which a run can leave out instead of ending with an error."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar

from accelerate import PartialState
from tqdm.auto import tqdm

from ..audio import AudioLimits, load_audio
from ..processes import gather_from_processes
from ..rows import clips_of_row


logger = logging.getLogger(__name__)
Row = TypeVar("Row", bound=Mapping[str, Any])

# What a run does about a row whose clip cannot be loaded.
OnBadClip = Literal["error", "skip"]

# Rows that a message names.
_SHOWN = 3


def find_bad_clips(
    rows: Sequence[Mapping[str, Any]],
    *,
    load: Callable[[Any], Any] | None = None,
    limits: AudioLimits | None = None,
    show_progress: bool = False,
) -> dict[int, str]:
    """
    Finds the rows with a clip that cannot be loaded: it is missing, not readable, empty, not finite, or exceeds a limit. Every
    clip is loaded once. With several processes, such as those of `accelerate launch`, each loads a part of the clips, so
    all of them have to call this function with the same rows.

    Args:
        rows (`Sequence[Mapping]`): rows that [`~peft_listen.training.AudioListenCollator`] takes, e.g. of [`read_examples`].
        load (`Callable`, *optional*): loads a clip, and raises an `OSError` or a `ValueError` if it cannot be loaded. By default
            [`load_audio`]; `FeatureCache.key` finds the clips that are in its index without decoding them.
        limits ([`~peft_listen.audio.AudioLimits`], *optional*): limits of [`load_audio`].
        show_progress (`bool`, defaults to `False`): whether to show a progress bar on stderr.

    Returns:
        `dict[int, str]`: what is wrong, by the number of the row from 0, in the order of the rows; the same in all processes.

    Raises:
        ValueError: if the `messages` of a row are not valid.
        ImportError: if a library that decodes audio is not installed.

    Example:

    ```python
    rows = read_examples("train.jsonl")
    bad = find_bad_clips(rows)
    rows = [row for number, row in enumerate(rows) if number not in bad]
    ```
    """
    state = PartialState()
    problems: dict[str, str | None] = {}  # by the path of the clip
    found: dict[int, str] = {}
    progress = tqdm(rows, desc="Checking clips", unit="row", disable=not (show_progress and state.is_main_process))
    for number, row in enumerate(progress):
        for clip in clips_of_row(row):
            path = os.fspath(clip) if isinstance(clip, (str, os.PathLike)) else None
            # A clip of several rows is loaded by one process.
            share = number if path is None else zlib.crc32(path.encode(errors="surrogatepass"))
            if share % state.num_processes != state.process_index:
                continue
            if path is None or path not in problems:
                problem = _problem(clip, load, limits)
                if path is not None:
                    problems[path] = problem
            else:
                problem = problems[path]
            if problem is not None:
                found.setdefault(number, problem)
    gathered = gather_from_processes(list(found.items()))
    return dict(sorted(dict(reversed(gathered)).items()))


def row_problem(row: Mapping[str, Any], limits: AudioLimits | None = None) -> str | None:
    """
    Describes why a clip of a row cannot be loaded.

    Args:
        row (`Mapping`): a row, see [`find_bad_clips`].
        limits ([`~peft_listen.audio.AudioLimits`], *optional*): limits of [`load_audio`].

    Returns:
        `str`: the message of the first error; `None` if all clips can be loaded.
    """
    problems = (_problem(clip, None, limits) for clip in clips_of_row(row))
    return next((problem for problem in problems if problem is not None), None)


def without_bad_clips(rows: Sequence[Row], problems: Mapping[int, str], name: str) -> list[Row]:
    """
    The rows whose clips can be loaded. How many are left out is logged, with the first of them.

    Args:
        rows (`Sequence[Mapping]`): the rows.
        problems (`Mapping[int, str]`): of [`find_bad_clips`].
        name (`str`): what messages call the rows, e.g. the data file.

    Raises:
        ValueError: if no rows are left.
    """
    if problems and len(problems) == len(rows):
        raise ValueError(
            f"None of the {len(rows)} rows of {name} has a clip that can be loaded. The first: {next(iter(problems.values()))}"
        )
    log_bad_clips(problems, len(rows), name)
    return [row for number, row in enumerate(rows) if number not in problems]


def log_bad_clips(problems: Mapping[int, str], num_rows: int, name: str) -> None:
    """
    Logs how many rows are skipped, and which are the first, as one warning of the main process.

    Args:
        problems (`Mapping[int, str]`): what is wrong, by the number of the row from 0; may be empty.
        num_rows (`int`): number of all rows.
        name (`str`): what the rows are called.
    """
    if not problems or not PartialState().is_main_process:
        return
    shown = "".join(f"\n  row {number + 1}: {problem}" for number, problem in list(problems.items())[:_SHOWN])
    more = f"\n  and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    verb = "is" if len(problems) == 1 else "are"
    logger.warning(
        f"{len(problems)} of {num_rows} rows of {name} {verb} skipped, because a clip cannot be loaded:{shown}{more}"
    )


def _problem(clip: Any, load: Callable[[Any], Any] | None, limits: AudioLimits | None) -> str | None:
    try:
        if load is None:
            load_audio(clip, limits=limits)
        else:
            load(clip)
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__
    return None
