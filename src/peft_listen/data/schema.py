"""Schema of data files: JSON lines of `{"audio", "instruction", "answer", "task"}` or `{"messages", "task"}`."""

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
from ..hub_names import is_repository_name
from ..rows import bare_row, has_messages, messages_problem, row_clips, text_of
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

# Required text fields of the two forms of a line.
_TEXT_FIELDS = ("instruction", "answer", "task")
_FIELDS_BESIDE_MESSAGES = ("task",)
# What a file of predictions has in addition.
_PREDICTED = ("generated",)


class Example(TypedDict):
    """
    One example, in the form that the collator and the pipeline accept.

    Attributes:
        audio (`str`, `list[str]` or `None`): path, http(s) URL or `data:` URI of the clip, or of each of several clips; `None`
            for a text-only example.
        instruction (`str`): question or instruction about the clip; with `messages`, the last one of the user.
        answer (`str`): correct answer; with `messages`, the last one of the assistant.
        task (`str`): name of the task, by which metrics and selections are grouped.
        references (`list[str]`, *optional*): all correct answers, if there are several. Metrics that take several
            references per row compare with these.
        metric (`str`, *optional*): the metric of the task, in the notation of [`~peft_listen.metrics.MetricChoice`].
        hub_dataset (`str`, *optional*): name on the Hub of the data set of the row, for model cards. A value that cannot be
            such a name is ignored.
        system (`str`, *optional*): system prompt.
        messages (`list[dict]`, *optional*): conversation of several turns that ends with the answer. Its parts
            `{"type": "audio"}` are the places of the clips in `audio`.
    """

    audio: str | list[str] | None
    instruction: str
    answer: str
    task: str
    references: NotRequired[list[str]]
    metric: NotRequired[str]
    hub_dataset: NotRequired[str]
    system: NotRequired[str]
    messages: NotRequired[list[dict[str, Any]]]


class Prediction(Example):
    """
    One example with the answer of a model.

    Attributes:
        generated (`str`): generated answer; may be empty.
        error (`str`, *optional*): why the row was skipped: its clip cannot be loaded. There is no answer then, `generated` is
            empty, and scores leave the row out.
        score (`float`, *optional*): for metrics of scores, such as `eer`: the log-probability of one answer minus that of
            another one.
    """

    generated: str
    error: NotRequired[str]
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

    A line with `messages` has no need of `instruction`, `answer` and `audio`: they are taken from the messages, whose audio
    parts `{"type": "audio", "audio": path}` name the clips, unless the field `audio` has them. Relative audio paths are
    resolved against the folder of the file, so a data set can be moved as a whole. The optional fields may be left out. Other
    fields and empty lines are ignored. Audio files are not opened; use [`check_examples`] for that.

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
    examples: list[Example] = _read(path)
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
    predictions: list[Prediction] = _read(path, _PREDICTED)
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
        contains the audio token, or its audio cannot be read, exceeds a limit, is empty or silent, or contains NaN or
        infinite samples.

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
        elif containing := [name for name, text in _texts(parsed) if audio_token in text]:
            message = (
                f"{containing[0]} contains the audio token {audio_token}, which is a placeholder for the clip. Remove it "
                "from the text."
            )
        else:
            for audio in row_clips(parsed):
                if audio not in checked:
                    checked[audio] = clip_problem(audio, limits)
                message = message or checked[audio]
        if message is not None:
            problems.append(Problem(line, message))
    return problems


def example_problem(fields: dict[str, Any]) -> str | None:
    """Describes why a line with these fields is not a valid example, or returns `None`; its clip is not opened."""
    row = _to_row(fields, [], Path(), ())
    return row if isinstance(row, str) else None


def prediction_problem(fields: dict[str, Any]) -> str | None:
    """Describes why a line with these fields would not be a valid prediction with any answer, or returns `None`."""
    row = _to_row({**fields, "generated": ""}, [], Path(), _PREDICTED)
    return row if isinstance(row, str) else None


def _texts(row: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of a row that a model reads, and what an error message calls them."""
    if has_messages(row):
        yield from ((f"message {number}", text_of(message)) for number, message in enumerate(row["messages"]))
    else:
        yield from ((f"`{name}`", row[name]) for name in ("system", "instruction", "answer") if name in row)


def _read(path: str | os.PathLike[str], more_fields: tuple[str, ...] = ()) -> Any:
    rows = []
    for line, parsed in _parse(path, more_fields):
        if isinstance(parsed, str):
            raise ValueError(f"{_name(path)}, line {line}: {parsed}")
        rows.append(parsed)
    if not rows:
        raise ValueError(f"{_name(path)} contains no examples; expected one JSON object per line.")
    return rows


def _parse(
    path: str | os.PathLike[str], more_fields: tuple[str, ...] = ()
) -> Iterator[tuple[int, dict[str, Any] | str]]:
    """
    Yields the number of each non-empty line, and its fields or an error message. Raises a `ValueError`
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
            parsed = _parse_line(line, folder, more_fields)
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


def _parse_line(line: bytes, folder: Path, more_fields: tuple[str, ...]) -> dict[str, Any] | str:
    fields = _parse_object(line)
    return fields if isinstance(fields, str) else _to_row(*fields, folder, more_fields)


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
    fields: dict[str, Any], repeated: list[str], folder: Path, more_fields: tuple[str, ...]
) -> dict[str, Any] | str:
    if repeated:
        return f"the fields {_shortened(sorted(repeated))} occur more than once. Keep one of each."
    is_chat = has_messages(fields)
    text_fields = (*(_FIELDS_BESIDE_MESSAGES if is_chat else _TEXT_FIELDS), *more_fields)
    missing = [name for name in (*(() if is_chat else ("audio",)), *text_fields) if name not in fields]
    if missing:
        return (
            f"the fields {missing} are missing; the line has {_shortened(sorted(fields))}. For a text-only example, set `audio` "
            "to null."
        )
    given = text_fields if fields.get("system") is None else (*text_fields, "system")
    for name in given:
        if not isinstance(fields[name], str):
            return f"`{name}` must be a string, got {_shortened(fields[name])}."
        if problem := _text_problem(fields[name]):
            return f"`{name}` {problem}"
    for name in ("system", "instruction", "task"):
        if name in given and not fields[name].strip():
            return f"`{name}` is empty."
    row = _chat_fields(fields, folder) if is_chat else _plain_fields(fields, folder)
    if isinstance(row, str):
        return row
    row |= {name: fields[name] for name in text_fields}
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
    if is_repository_name(fields.get("hub_dataset")):
        row["hub_dataset"] = fields["hub_dataset"]
    error: Any = fields.get("error") if "generated" in text_fields else None
    if error is not None:
        if not isinstance(error, str) or not error:
            return f"`error` must be a string that is not empty, or null, got {_shortened(error)}."
        if problem := _text_problem(error):
            return f"`error` {problem}"
        row["error"] = error
    score: Any = fields.get("score") if "generated" in text_fields else None
    if score is not None:
        if not isinstance(score, (int, float)) or isinstance(score, bool) or not abs(score) <= _LARGEST_SCORE:
            return f"`score` must be a finite number or null, got {_shortened(score)}."
        row["score"] = float(score)
    return row


def _plain_fields(fields: dict[str, Any], folder: Path) -> dict[str, Any] | str:
    audio = _to_clips(fields["audio"], folder)
    if isinstance(audio, _ClipProblem):
        return audio
    system = fields.get("system")
    return {"audio": audio, **({"system": system} if system is not None else {})}


def _chat_fields(fields: dict[str, Any], folder: Path) -> dict[str, Any] | str:
    if problem := messages_problem(fields["messages"]):
        return problem
    for number, message in enumerate(fields["messages"]):
        if problem := _text_problem(text_of(message)):
            return f"message {number} {problem}"
    if fields["messages"][-1]["role"] != "assistant":
        return "the last of the `messages` is not the assistant's. End them with the answer."
    try:
        row = bare_row(fields)
    except ValueError as error:
        return str(error)
    for number, message in enumerate(row["messages"]):
        has_no_clip = isinstance(message["content"], str) or all(part["type"] == "text" for part in message["content"])
        if message["role"] != "assistant" and has_no_clip and not text_of(message).strip():
            return f"message {number} is empty: it has neither text nor audio. Leave it out, or add its text."
    audio = _to_clips(row["audio"] or None, folder)
    return audio if isinstance(audio, _ClipProblem) else {**row, "audio": audio}


class _ClipProblem(str):
    """Error message about the clips of a line."""


def _to_clips(audio: Any, folder: Path) -> str | list[str] | _ClipProblem | None:
    """The clips of a line, with whole paths, or what is wrong with them."""
    if audio is None:
        return None
    is_list = isinstance(audio, list)
    clips: list[Any] = audio if is_list else [audio]
    if not clips or not all(isinstance(clip, str) and clip for clip in clips):
        return _ClipProblem(f"`audio` must be a path, a URL, a list of these, or null, got {_shortened(audio)}.")
    if problem := next((problem for clip in clips if (problem := _text_problem(clip, is_path=True))), None):
        return _ClipProblem(f"`audio` {problem}")
    # If a clip is an absolute path, the folder is ignored.
    resolved = [clip if is_url(clip) else str(folder / clip) for clip in clips]
    return resolved if is_list else resolved[0]


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
        return (
            f"{display_name(audio)}: the audio is silent (its peak amplitude is {peak:.1e}). Leave the clip out, or record it "
            "again."
        )
    return None
