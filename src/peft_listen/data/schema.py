"""Schema of data files: JSON lines of `{"audio", "instruction", "answer", "task"}`."""

import json
import os
import reprlib
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict

import numpy as np
from tqdm.auto import tqdm

from ..audio import AudioLimits, display_name, is_url, load_audio
from ..audio.addresses import is_data_uri
from ..chat import AUDIO_TOKEN
from ..unicode import half_surrogate_problem


# Peak amplitude (-80 dB of full scale) below which a clip counts as silent.
SILENCE_PEAK = 1e-4

# Bytes of a line beyond which it is not parsed: a file without line ends is not read into memory as a whole.
MAX_LINE_BYTES = 64 << 20

# Characters of a field that is used; more do not fit into the context of a model.
MAX_TEXT_CHARACTERS = 500_000

# Lines at the beginning of a file of which at least one must be a JSON object.
_MAX_UNREADABLE_LINES = 10

# A sum of log-probabilities is far below.
_LARGEST_SCORE = 1e300

_TEXT_FIELDS = ("instruction", "answer", "task")
_PREDICTION_FIELDS = (*_TEXT_FIELDS, "generated")


class Example(TypedDict):
    """
    One example, in the form that the collator and the pipeline accept.

    Attributes:
        audio (`str` or `None`): path, http(s) URL or `data:` URI of the clip; `None` for a text-only example.
        instruction (`str`): question or instruction about the clip.
        answer (`str`): correct answer.
        task (`str`): name of the task, by which metrics and selections are grouped.
        references (`list[str]`, *optional*): all correct answers, if there are several. Metrics that take several
            references per row compare with these.
        metric (`str`, *optional*): the metric of the task, in the notation of [`~peft_listen.metrics.MetricChoice`].
    """

    audio: str | None
    instruction: str
    answer: str
    task: str
    references: NotRequired[list[str]]
    metric: NotRequired[str]


class Prediction(Example):
    """
    One example with the answer of a model.

    Attributes:
        generated (`str`): generated answer; may be empty.
        score (`float`, *optional*): for metrics of scores, such as `eer`: the log-probability of one answer minus that of
            another one.
    """

    generated: str
    score: NotRequired[float]


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


class _Unreadable(str):
    """Error message of a line that is not a JSON object."""


def read_examples(path: str | os.PathLike[str]) -> list[Example]:
    """
    Reads a data file: UTF-8 text with one JSON object per line, which has the fields of [`Example`].

    Relative audio paths are resolved against the folder of the file, so a data set can be moved as a whole. The field `metric`
    may be left out. Other fields and empty lines are ignored. Audio files are not opened; use [`check_examples`] for that.

    A line may have at most 64 MiB (`MAX_LINE_BYTES`), and each field that is used at most 500 000 characters
    (`MAX_TEXT_CHARACTERS`), except for a `data:` URI as `audio`.

    Args:
        path (`str` or `os.PathLike`): data file.

    Returns:
        `list[Example]`: examples in the order of the file.

    Raises:
        OSError: if the file cannot be read, or is a device.
        ValueError: if a line is not a valid example (the message contains its number), the file contains none, or it is
            not a file of JSON lines.
    """
    examples: list[Example] = _read(path, _TEXT_FIELDS)
    return examples


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """
    Reads a data file whose lines also have the answer of a model, in the field `generated`.

    Args:
        path (`str` or `os.PathLike`): data file, see [`read_examples`].

    Returns:
        `list[Prediction]`: predictions in the order of the file.

    Raises:
        OSError: if the file cannot be read, or is a device.
        ValueError: if a line is not a valid prediction (the message contains its number), or the file contains none.
    """
    predictions: list[Prediction] = _read(path, _PREDICTION_FIELDS)
    return predictions


def check_examples(
    path: str | os.PathLike[str],
    *,
    show_progress: bool = False,
    limits: AudioLimits | None = None,
    audio_token: str = AUDIO_TOKEN,
) -> list[Problem]:
    """
    Checks a data file and all clips that it refers to.

    Args:
        path (`str` or `os.PathLike`): data file, see [`read_examples`].
        show_progress (`bool`, defaults to `False`): whether to show a progress bar on stderr.
        limits ([`~peft_listen.audio.AudioLimits`], *optional*): limits within which clips are loaded, by default those of
            [`~peft_listen.audio.set_default_limits`].
        audio_token (`str`, defaults to `"<|audio|>"`): audio token of the processor, which no text may contain.

    Returns:
        `list[Problem]`: problems in the order of the file, at most one per line: the line is not a valid example, its text
        contains the audio token, or its audio cannot be read, exceeds a limit, is empty or silent, or contains NaN or infinite samples.

    Raises:
        OSError: if the data file itself cannot be read, or is a device.
        ValueError: if the data file is empty, or is not a file of JSON lines.
        ImportError: if soundfile or soxr is not installed.
    """
    lines = list(_parse(path))
    if not lines:
        raise ValueError(f"{_name(path)} contains no examples; expected one JSON object per line.")
    problems = []
    # A clip often occurs on several lines, with different instructions.
    checked: dict[str, str | None] = {}
    for line, parsed in tqdm(lines, desc="Checking", unit="example", disable=not show_progress):
        message = None
        if isinstance(parsed, str):
            message = parsed
        elif containing := [name for name in ("instruction", "answer") if audio_token in parsed[name]]:
            message = (
                f"`{containing[0]}` contains the audio token {audio_token}, which is a placeholder for the clip. Remove it "
                "from the text."
            )
        elif (audio := parsed["audio"]) is not None:
            if audio not in checked:
                checked[audio] = clip_problem(audio, limits)
            message = checked[audio]
        if message is not None:
            problems.append(Problem(line, message))
    return problems


def example_problem(fields: dict[str, Any]) -> str | None:
    """Describes why a line with these fields is not a valid example, or returns `None`; its clip is not opened."""
    row = _to_row(fields, [], Path(), _TEXT_FIELDS)
    return row if isinstance(row, str) else None


def _read(path: str | os.PathLike[str], text_fields: tuple[str, ...]) -> Any:
    rows = []
    for line, parsed in _parse(path, text_fields):
        if isinstance(parsed, str):
            raise ValueError(f"{_name(path)}, line {line}: {parsed}")
        rows.append(parsed)
    if not rows:
        raise ValueError(f"{_name(path)} contains no examples; expected one JSON object per line.")
    return rows


def _parse(
    path: str | os.PathLike[str], text_fields: tuple[str, ...] = _TEXT_FIELDS
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """
    Yields the number of each non-empty line, and its `audio` and text fields or an error message. Raises a `ValueError`
    if none of the first lines is a JSON object: the file is another one, and an error for each of its lines would not
    help.
    """
    folder = Path(path).parent
    unreadable: list[tuple[int, _Unreadable]] | None = []  # until the first JSON object
    is_binary = False
    with _open(path) as file:
        for number, line in enumerate(_lines(file), start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if not line.strip():
                continue
            parsed = _parse_line(line, folder, text_fields)
            if unreadable is None:
                yield number, parsed
            elif isinstance(parsed, _Unreadable):
                unreadable.append((number, parsed))
                is_binary = is_binary or b"\0" in line
                if len(unreadable) == _MAX_UNREADABLE_LINES:
                    raise _not_json_lines(path, unreadable, is_binary)
            else:
                yield from unreadable
                unreadable = None
                yield number, parsed
    if unreadable and (len(unreadable) > 1 or is_binary):
        raise _not_json_lines(path, unreadable, is_binary)
    yield from unreadable or ()


def _not_json_lines(
    path: str | os.PathLike[str], unreadable: list[tuple[int, _Unreadable]], is_binary: bool
) -> ValueError:
    kind = "text file (it contains null bytes)" if is_binary else "file of JSON lines"
    number, problem = unreadable[0]
    return ValueError(
        f"{_name(path)} is not a {kind}: none of its first {len(unreadable)} lines is a JSON object. Expected UTF-8 text with "
        f"one JSON object per line. Line {number}: {problem}"
    )


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    name = _name(path)
    try:
        file = open(path, "rb")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{name}: no such data file (the working directory is {os.getcwd()}). Check the path."
        ) from None
    except IsADirectoryError:
        raise IsADirectoryError(
            f"{name} is a folder; expected a data file. Pass the path of a file of JSON lines."
        ) from None
    except OSError as error:
        raise type(error)(f"{name}: the data file cannot be opened ({error.strerror}). Check the path.") from None
    except ValueError as error:
        raise FileNotFoundError(f"{name!r} is not a path ({error}). Pass the path of a data file.") from None
    mode = os.fstat(file.fileno()).st_mode
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        file.close()
        raise OSError(f"{name} is a device; expected a data file. Pass the path of a file.")
    return file


def _name(path: str | os.PathLike[str]) -> str:
    return display_name(os.fsdecode(path))


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yields the lines of a file. Of a line that is too long, the rest is skipped, so that memory is bounded."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        part = line
        while not part.endswith(b"\n") and (part := file.readline(1 << 20)):
            pass
        yield line


def _parse_line(line: bytes, folder: Path, text_fields: tuple[str, ...]) -> dict[str, Any] | str:
    fields = _parse_object(line)
    return fields if isinstance(fields, str) else _to_row(*fields, folder, text_fields)


def _parse_object(line: bytes) -> tuple[dict[str, Any], list[str]] | _Unreadable:
    """Returns the fields of a line, and the names that occur more than once, or an error message."""
    if len(line) > MAX_LINE_BYTES:
        return _Unreadable(
            f"longer than {MAX_LINE_BYTES} bytes. Every line must be one JSON object; end it with a line break."
        )
    repeated: list[str] = []

    def to_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        # The object of the line itself is the last one that is completed.
        counts = Counter(name for name, _ in pairs)
        repeated[:] = [name for name, count in counts.items() if count > 1]
        return dict(pairs)

    try:
        fields = json.loads(line.strip().decode(), object_pairs_hook=to_fields)
    except UnicodeDecodeError as error:
        return _Unreadable(f"not UTF-8 ({error}). Save the file as UTF-8.")
    except json.JSONDecodeError as error:
        return _Unreadable(
            f"not valid JSON ({error.msg} at character {error.pos + 1}). Every line must be one JSON object."
        )
    except RecursionError:
        return _Unreadable(
            "not readable: its arrays or objects are nested too deeply. Flatten the field, or leave it out."
        )
    except ValueError as error:  # an integer with more digits than Python converts
        return _Unreadable(
            f"not readable ({error}). Write the number with fewer digits or as a string, or leave it out."
        )
    if not isinstance(fields, dict):
        return _Unreadable(
            f'expected a JSON object {{"audio": ..., "instruction": ..., ...}}, got a {type(fields).__name__}.'
        )
    return fields, repeated


def _to_row(
    fields: dict[str, Any], repeated: list[str], folder: Path, text_fields: tuple[str, ...]
) -> dict[str, Any] | str:
    if repeated:
        return f"the fields {_shortened(sorted(repeated))} occur more than once. Keep one of each."
    missing = [name for name in ("audio", *text_fields) if name not in fields]
    if missing:
        return f"the fields {missing} are missing; the line has {_shortened(sorted(fields))}. For a text-only example, set `audio` to null."
    for name in text_fields:
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
    row = {"audio": audio, **{name: fields[name] for name in text_fields}}
    references = fields.get("references")
    if references is not None:
        if problem := _references_problem(references):
            return f"`references` {problem}"
        row["references"] = references
    metric: Any = fields.get("metric")
    if metric is not None:
        if not isinstance(metric, str) or not metric.strip():
            return f"`metric` must be the name of a metric or null, got {_shortened(metric)}."
        if problem := _text_problem(metric):
            return f"`metric` {problem}"
        row["metric"] = metric
    score: Any = fields.get("score") if "generated" in text_fields else None
    if score is not None:
        if not isinstance(score, (int, float)) or isinstance(score, bool) or not abs(score) <= _LARGEST_SCORE:
            return f"`score` must be a finite number or null, got {_shortened(score)}."
        row["score"] = float(score)
    return row


def _references_problem(references: Any) -> str | None:
    if not isinstance(references, list) or not references or not all(isinstance(text, str) for text in references):
        return (
            f"must be a list of at least one string, got {_shortened(references)}. Leave the field out for one answer."
        )
    return next((problem for text in references if (problem := _text_problem(text))), None)


def _text_problem(text: str, is_path: bool = False) -> str | None:
    # The clip in a `data:` URI is limited by the line and by `AudioLimits.max_bytes`.
    if len(text) > MAX_TEXT_CHARACTERS and not (is_path and is_data_uri(text)):
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


def clip_problem(audio: str, limits: AudioLimits | None = None) -> str | None:
    """Describes why a clip cannot be read or is silent, or returns `None`."""
    try:
        waveform = load_audio(audio, limits=limits)
    except (OSError, ValueError) as error:
        return str(error)
    peak = float(np.abs(waveform).max())
    if peak < SILENCE_PEAK:
        return f"{display_name(audio)}: the audio is silent (its peak amplitude is {peak:.1e}). Leave the clip out, or record it again."
    return None
