"""The one schema of all data: JSON lines of `{"audio", "instruction", "answer", "task"}`."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from tqdm.auto import tqdm

from ..audio import load_audio


# A clip whose largest sample is below this (-80 dB of full scale) has nothing to be heard.
SILENCE_PEAK = 1e-4

_TEXT_FIELDS = ("instruction", "answer", "task")


class Example(TypedDict):
    """
    One example, as the collator and the pipeline take it.

    Attributes:
        audio (`str` or `None`): Path or http(s) URL of the clip; `None` for an example of text alone.
        instruction (`str`): What is asked about the clip.
        answer (`str`): The right answer.
        task (`str`): Name of the task, by which metrics and selections are grouped.
    """

    audio: str | None
    instruction: str
    answer: str
    task: str


@dataclass(frozen=True)
class Problem:
    """
    What is wrong with one line of a data file.

    Attributes:
        line (`int`): Number of the line, from 1.
        message (`str`): What is wrong, what was expected, and what to do.
    """

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def read_examples(path: str | os.PathLike[str]) -> list[Example]:
    """
    Reads a data file: UTF-8, one JSON object a line, with the fields of [`Example`].

    Relative audio paths are taken from the file's own folder, so that a data set can be moved as a whole. Other fields
    are left out, empty lines skipped. The audio itself is not opened: [`check_examples`] does that.

    Args:
        path (`str` or `os.PathLike`): The file.

    Returns:
        `list[Example]`, in the order of the file.

    Raises:
        OSError: The file cannot be read.
        ValueError: A line is not a valid example (its number is named), or the file has none.
    """
    examples = []
    for line, parsed in _parse(path):
        if isinstance(parsed, str):
            raise ValueError(f"{os.fspath(path)}, line {line}: {parsed}")
        examples.append(parsed)
    if not examples:
        raise ValueError(f"{os.fspath(path)} holds no examples; expected one JSON object a line.")
    return examples


def check_examples(path: str | os.PathLike[str], *, show_progress: bool = False) -> list[Problem]:
    """
    Checks a data file and every clip it names.

    Args:
        path (`str` or `os.PathLike`): The file, as for [`read_examples`].
        show_progress (`bool`, *optional*, defaults to `False`): Show a progress bar on stderr.

    Returns:
        `list[Problem]` in the order of the lines: those that are not valid examples, and those whose audio cannot be
        read, is empty, silent, or holds NaN or infinite samples. Empty if all is well.

    Raises:
        OSError: The data file itself cannot be read.
        ValueError: The data file has no lines.
        ImportError: soundfile or soxr is not installed.
    """
    lines = list(_parse(path))
    if not lines:
        raise ValueError(f"{os.fspath(path)} holds no examples; expected one JSON object a line.")
    problems = []
    # Several questions are often asked about one clip.
    checked: dict[str, str | None] = {}
    for line, parsed in tqdm(lines, desc="Checking", unit="example", disable=not show_progress):
        message = None
        if isinstance(parsed, str):
            message = parsed
        elif (audio := parsed["audio"]) is not None:
            if audio not in checked:
                checked[audio] = _audio_problem(audio)
            message = checked[audio]
        if message is not None:
            problems.append(Problem(line, message))
    return problems


def _parse(path: str | os.PathLike[str]) -> Iterator[tuple[int, Example | str]]:
    """Yields the number of each line that is not empty, and its example or what is wrong with it."""
    path = Path(path)
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, _parse_line(line, path.parent)


def _parse_line(line: bytes, folder: Path) -> Example | str:
    try:
        fields = json.loads(line.decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error}). Save the file as UTF-8."
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error}). Every line must be one JSON object."
    if not isinstance(fields, dict):
        return f'expected a JSON object {{"audio": ..., "instruction": ..., ...}}, got a {type(fields).__name__}.'
    missing = [name for name in ("audio", *_TEXT_FIELDS) if name not in fields]
    if missing:
        return f"the fields {missing} are missing; there are {sorted(fields)}. For text alone, set `audio` to null."
    for name in _TEXT_FIELDS:
        if not isinstance(fields[name], str):
            return f"`{name}` must be a string, got {fields[name]!r}."
    for name in ("instruction", "task"):
        if not fields[name].strip():
            return f"`{name}` is empty."
    audio: Any = fields["audio"]
    if audio is not None and (not isinstance(audio, str) or not audio):
        return f"`audio` must be a path, a URL or null, got {audio!r}."
    if audio is not None and not audio.startswith(("http://", "https://")):
        # An absolute path stays as it is.
        audio = str(folder / audio)
    return Example(audio=audio, instruction=fields["instruction"], answer=fields["answer"], task=fields["task"])


def _audio_problem(audio: str) -> str | None:
    try:
        waveform = load_audio(audio)
    except (OSError, ValueError) as error:
        return str(error)
    peak = float(np.abs(waveform).max())
    if peak < SILENCE_PEAK:
        return (
            f"{audio}: the audio is silent (its largest sample is {peak:.1e}). Leave the clip out, or record it again."
        )
    return None
