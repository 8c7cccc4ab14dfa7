"""Schema of data files: JSON lines of `{"audio", "instruction", "answer", "task"}`."""

import json
import os
import reprlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypedDict

import numpy as np
from tqdm.auto import tqdm

from ..audio import AudioLimits, display_name, is_url, load_audio
from ..unicode import half_surrogate_problem


# Peak amplitude (-80 dB of full scale) below which a clip counts as silent.
SILENCE_PEAK = 1e-4

# Bytes of a line beyond which it is not parsed: a file without line ends is not read into memory as a whole.
MAX_LINE_BYTES = 64 << 20

# Characters of a field that is used; more do not fit into the context of a model.
MAX_TEXT_CHARACTERS = 500_000

_TEXT_FIELDS = ("instruction", "answer", "task")


class Example(TypedDict):
    """
    One example, in the form that the collator and the pipeline accept.

    Attributes:
        audio (`str` or `None`): path or http(s) URL of the clip; `None` for a text-only example.
        instruction (`str`): question or instruction about the clip.
        answer (`str`): correct answer.
        task (`str`): name of the task, by which metrics and selections are grouped.
    """

    audio: str | None
    instruction: str
    answer: str
    task: str


@dataclass(frozen=True)
class Problem:
    """
    Problem with one line of a data file.

    Attributes:
        line (`int`): line number, starting at 1.
        message (`str`): what is wrong, what was expected, and what to do.
    """

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.message}"


def read_examples(path: str | os.PathLike[str]) -> list[Example]:
    """
    Reads a data file: UTF-8 text with one JSON object per line, which has the fields of [`Example`].

    Relative audio paths are resolved against the folder of the file, so a data set can be moved as a whole. Other fields
    and empty lines are ignored. Audio files are not opened; use [`check_examples`] for that.

    A line may have at most 64 MiB (`MAX_LINE_BYTES`), and each field that is used at most 500 000 characters
    (`MAX_TEXT_CHARACTERS`).

    Args:
        path (`str` or `os.PathLike`): data file.

    Returns:
        `list[Example]`: examples in the order of the file.

    Raises:
        OSError: if the file cannot be read, or is a device.
        ValueError: if a line is not a valid example (the message contains its number), or the file contains none.
    """
    examples = []
    for line, parsed in _parse(path):
        if isinstance(parsed, str):
            raise ValueError(f"{os.fspath(path)}, line {line}: {parsed}")
        examples.append(parsed)
    if not examples:
        raise ValueError(f"{os.fspath(path)} contains no examples; expected one JSON object per line.")
    return examples


def check_examples(
    path: str | os.PathLike[str], *, show_progress: bool = False, limits: AudioLimits | None = None
) -> list[Problem]:
    """
    Checks a data file and all clips that it refers to.

    Args:
        path (`str` or `os.PathLike`): data file, see [`read_examples`].
        show_progress (`bool`, defaults to `False`): whether to show a progress bar on stderr.
        limits ([`~peft_listen.audio.AudioLimits`], *optional*): limits within which clips are loaded, by default those of
            [`~peft_listen.audio.set_default_limits`].

    Returns:
        `list[Problem]`: problems in the order of the file, at most one per line: the line is not a valid example, or
        its audio cannot be read, exceeds a limit, is empty or silent, or contains NaN or infinite samples.

    Raises:
        OSError: if the data file itself cannot be read, or is a device.
        ValueError: if the data file is empty.
        ImportError: if soundfile or soxr is not installed.
    """
    lines = list(_parse(path))
    if not lines:
        raise ValueError(f"{os.fspath(path)} contains no examples; expected one JSON object per line.")
    problems = []
    # A clip often occurs on several lines, with different instructions.
    checked: dict[str, str | None] = {}
    for line, parsed in tqdm(lines, desc="Checking", unit="example", disable=not show_progress):
        message = None
        if isinstance(parsed, str):
            message = parsed
        elif (audio := parsed["audio"]) is not None:
            if audio not in checked:
                checked[audio] = _audio_problem(audio, limits)
            message = checked[audio]
        if message is not None:
            problems.append(Problem(line, message))
    return problems


def _parse(path: str | os.PathLike[str]) -> Iterator[tuple[int, Example | str]]:
    """Yields the number of each non-empty line, and its example or an error message."""
    path = Path(path)
    with open(path, "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            raise OSError(f"{path} is a device; expected a data file. Pass the path of a file.")
        for number, line in enumerate(_lines(file), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield number, _parse_line(line, path.parent)


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file. Of a line that is too long, the rest is skipped, so that memory is bounded."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        part = line
        while not part.endswith(b"\n") and (part := file.readline(1 << 20)):
            pass
        yield line


def _parse_line(line: bytes, folder: Path) -> Example | str:
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES} bytes. Every line must be one JSON object; end it with a line break."
    try:
        fields = json.loads(line.strip().decode())
    except UnicodeDecodeError as error:
        return f"not UTF-8 ({error}). Save the file as UTF-8."
    except json.JSONDecodeError as error:
        return f"not valid JSON ({error.msg} at character {error.pos + 1}). Every line must be one JSON object."
    except RecursionError:
        return "not readable: its arrays or objects are nested too deeply. Flatten the field, or leave it out."
    except ValueError as error:  # an integer with more digits than Python converts
        return f"not readable ({error}). Write the number with fewer digits or as a string, or leave it out."
    if not isinstance(fields, dict):
        return f'expected a JSON object {{"audio": ..., "instruction": ..., ...}}, got a {type(fields).__name__}.'
    missing = [name for name in ("audio", *_TEXT_FIELDS) if name not in fields]
    if missing:
        return f"the fields {missing} are missing; the line has {_shortened(sorted(fields))}. For a text-only example, set `audio` to null."
    for name in _TEXT_FIELDS:
        if not isinstance(fields[name], str):
            return f"`{name}` must be a string, got {_shortened(fields[name])}."
        if problem := _text_problem(fields[name]):
            return f"`{name}` {problem}"
    for name in ("instruction", "task"):
        if not fields[name].strip():
            return f"`{name}` is empty."
    audio: Any = fields["audio"]
    if audio is not None and (not isinstance(audio, str) or not audio):
        return f"`audio` must be a path, a URL or null, got {_shortened(audio)}."
    if audio is not None and (problem := _text_problem(audio, is_path=True)):
        return f"`audio` {problem}"
    if audio is not None and not is_url(audio):
        # If `audio` is an absolute path, the folder is ignored.
        audio = str(folder / audio)
    return Example(audio=audio, instruction=fields["instruction"], answer=fields["answer"], task=fields["task"])


def _text_problem(text: str, is_path: bool = False) -> str | None:
    if len(text) > MAX_TEXT_CHARACTERS:
        return f"has {len(text)} characters; expected at most {MAX_TEXT_CHARACTERS}. Shorten it: {_shortened(text)}."
    if is_path and "\0" in text:
        return f"contains a null character, which no path or URL can contain: {_shortened(text)}. Remove it."
    return half_surrogate_problem(text, is_path)


def _shortened(value: Any) -> str:
    """Like `repr`, but bounded in length."""
    shortener = reprlib.Repr()
    shortener.maxstring = shortener.maxother = shortener.maxlong = 100
    shortener.maxlist = shortener.maxdict = 20
    return shortener.repr(value)


def _audio_problem(audio: str, limits: AudioLimits | None) -> str | None:
    try:
        waveform = load_audio(audio, limits=limits)
    except (OSError, ValueError) as error:
        return str(error)
    peak = float(np.abs(waveform).max())
    if peak < SILENCE_PEAK:
        return f"{display_name(audio)}: the audio is silent (its peak amplitude is {peak:.1e}). Leave the clip out, or record it again."
    return None
