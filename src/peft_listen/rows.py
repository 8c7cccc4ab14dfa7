"""
Rows of data sets, and the messages that they stand for. The collator, the pipeline and the data files share these rules, so
that a row means the same wherever it is used. This module imports no model, as `chat.py`.

A row is `{"audio": clip or clips, "system": ..., "instruction": ..., "answer": ...}`, or `{"messages": [...]}` for a
conversation of several turns.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from .audio.waveform import is_list_of_clips
from .chat import clip_of


ROLES = ("system", "user", "assistant")

# Fields of a row that `messages` contain already.
_WRITTEN_OUT = ("system", "instruction", "answer")

Messages = list[dict[str, Any]]


def clips_of(rows: Iterable[Mapping[str, Any]]) -> list[Any]:
    """
    All clips of some rows, in their order: what [`~peft_listen.training.FeatureCache.build`] takes.

    Args:
        rows (`Iterable[Mapping]`): rows that [`~peft_listen.training.AudioListenCollator`] takes.

    Returns:
        `list`: the clips; one that several rows have occurs several times.

    Raises:
        ValueError: if the `messages` of a row are not valid; the message names the row, from 0.
    """
    clips: list[Any] = []
    for number, row in enumerate(rows):
        try:
            clips += clips_of_row(row)
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
    return clips


def has_messages(row: Mapping[str, Any]) -> bool:
    """Whether a row is a conversation; in tables, rows of the other form have `None` in this column."""
    return row.get("messages") is not None


def row_clips(row: Mapping[str, Any]) -> list[Any]:
    """The clips of a row's `audio`: none, one, or those of a list."""
    audio = row.get("audio")
    if audio is None:
        return []
    return list(audio) if is_list_of_clips(audio) else [audio]


def clips_of_row(row: Mapping[str, Any]) -> list[Any]:
    """The clips of a row of either form: those of `audio` and of `messages`, in their order."""
    return split_clips(row_messages(row))[1] if has_messages(row) else row_clips(row)


def row_messages(row: Mapping[str, Any]) -> Messages:
    """
    Converts a row to messages whose audio parts hold the clips.

    The clips of `audio` stand before the text of the row's first question, unless `messages` have `{"type": "audio"}` parts
    without a clip, which they fill in order.

    Args:
        row (`Mapping`): A row of either form. The fields of one form are only used if there are no `messages`; `answer` may
            be missing.

    Returns:
        `list[dict]`: Messages with `role` and `content`, a string or a list of audio and text parts.

    Raises:
        ValueError: The messages are not valid, contradict the other fields, or have another number of places for clips than
            `audio` has clips.
    """
    clips = row_clips(row)
    if not has_messages(row):
        messages: Messages = []
        if row.get("system") is not None:
            messages.append({"role": "system", "content": row["system"]})
        parts = [*map(_audio_part, clips), {"type": "text", "text": row["instruction"]}]
        messages.append({"role": "user", "content": parts})
        if row.get("answer") is not None:
            messages.append({"role": "assistant", "content": row["answer"]})
        return messages
    if problem := messages_problem(row["messages"]):
        raise ValueError(problem)
    messages = [_without_empty_keys(message) for message in row["messages"]]
    if problem := contradiction(row, messages):
        raise ValueError(problem)
    return _with_clips(messages, clips)


def bare_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """
    A row of which everything is in one place: the clips in the list `audio`, and `instruction` and `answer` those of the
    messages.

    Args:
        row (`Mapping`): A row with `messages`.

    Returns:
        `dict`: `audio`, `messages` with `{"type": "audio"}` as places of the clips, `instruction`, the user's last text, and
        `answer`, `None` if the last message is not the assistant's.

    Raises:
        ValueError: as [`row_messages`].
    """
    messages, clips = split_clips(row_messages(row))
    before, answer = split_answer(messages)
    question = next(text_of(message) for message in reversed(before) if message["role"] == "user")
    return {"audio": clips, "messages": messages, "instruction": question, "answer": answer}


def split_answer(messages: Messages) -> tuple[Messages, str | None]:
    """
    Separates the answer of a row from the messages that it answers.

    Args:
        messages (`list[dict]`): The messages, which are not changed.

    Returns:
        The messages before the answer, and its text; all messages and `None` if the last one is not the assistant's.
    """
    if not messages or messages[-1]["role"] != "assistant":
        return messages, None
    return messages[:-1], text_of(messages[-1])


def with_answer(row: Mapping[str, Any], answer: str) -> dict[str, Any]:
    """
    A row with another answer.

    Args:
        row (`Mapping`): A row of either form, which is not changed.
        answer (`str`): The answer; in a conversation, it takes the place of the last one.

    Returns:
        `dict`: The row that [`~peft_listen.training.AudioListenCollator`] takes.

    Raises:
        ValueError: as [`row_messages`].
    """
    if not has_messages(row):
        return {**row, "answer": answer}
    before, _ = split_answer(row_messages(row))
    return {"messages": [*before, {"role": "assistant", "content": answer}]}


def split_clips(messages: Sequence[Mapping[str, Any]]) -> tuple[Messages, list[Any]]:
    """
    Separates the clips of a chat from its messages.

    Args:
        messages (`Sequence[Mapping]`): The messages, which are not changed.

    Returns:
        The messages for the chat template, with audio parts reduced to `{"type": "audio"}`, and the clips in order.

    Raises:
        ValueError: An audio part has no audio.
    """
    bare, clips = [], []
    for message in messages:
        content = message["content"]
        if isinstance(content, (list, tuple)):
            parts = []
            for part in content:
                if part.get("type") == "audio":
                    clip = clip_of(part)
                    if clip is None:
                        raise ValueError(
                            f"A message has an audio part without audio: {part!r}. Expected "
                            '{"type": "audio", "audio": ...} with a clip that `load_audio` can read.'
                        )
                    clips.append(clip)
                    part = {"type": "audio"}
                parts.append(part)
            message = {**message, "content": parts}
        bare.append(dict(message))
    return bare, clips


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, without its clips."""
    content = message["content"]
    return content if isinstance(content, str) else "".join(part["text"] for part in _parts(message, "text"))


def messages_problem(messages: Any) -> str | None:
    """Describes what is wrong with the `messages` of a row, or returns `None`; clips are not looked at."""
    if not isinstance(messages, (list, tuple)) or not messages:
        return f"`messages` must be a list of at least one message, got {type(messages).__name__}: {messages!r:.100}."
    for number, message in enumerate(messages):
        if problem := _message_problem(message):
            return f"Message {number} of `messages` {problem}"
    roles = [message["role"] for message in messages]
    if "system" in roles[1:]:
        return f"Message {roles.index('system', 1)} of `messages` is a system prompt; only the first may be one."
    first = next((role for role in roles if role != "system"), None)
    if first != "user":
        return f"`messages` must begin with a question of the user, after an optional system prompt; the roles are {roles}."
    for number, pair in enumerate(pairwise(roles), start=1):
        if pair == ("assistant", "assistant"):
            return (
                f"Messages {number - 1} and {number} of `messages` are both of the assistant, so nothing asks for the "
                "second. Make one message of the two."
            )
    return None


def _message_problem(message: Any) -> str | None:
    if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
        return f'must be {{"role": ..., "content": ...}}, got {message!r:.100}.'
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"has the role {role!r:.100}; expected one of {', '.join(ROLES)}."
    if isinstance(content, str):
        return None
    if not isinstance(content, (list, tuple)):
        return f"has a content of type {type(content).__name__}; expected a string, or a list of audio and text parts."
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("audio", "text"):
            return f'has the part {part!r:.100}; expected {{"type": "audio", "audio": clip}} or {{"type": "text", "text": ...}}.'
        if kind == "text" and not isinstance(part.get("text"), str):
            return f"has a text part whose text is {part.get('text')!r:.100}; expected a string."
        if kind == "audio" and role != "user":
            return f"is of the {role} and has audio, which only the user's messages can have. Move it to one of them."
    return None


def contradiction(row: Mapping[str, Any], messages: Messages) -> str | None:
    """Describes a field of a row that says something else than its messages, or returns `None`."""
    system = text_of(messages[0]) if messages[0]["role"] == "system" else None
    before, answer = split_answer(messages)
    question = next(text_of(message) for message in reversed(before) if message["role"] == "user")
    for name, value in zip(_WRITTEN_OUT, (system, question, answer), strict=True):
        if row.get(name) is not None and row[name] != value:
            return (
                f"The row has `messages`, and its `{name}` {row[name]!r:.100} is not that of the messages, {value!r:.100}. "
                "Leave it out."
            )
    return None


def _with_clips(messages: Messages, clips: list[Any]) -> Messages:
    parts = [part for message in messages for part in _parts(message, "audio")]
    empty = [part for part in parts if clip_of(part) is None]
    if clips and not parts:
        first = next(message for message in messages if message["role"] == "user")
        content = first["content"]
        text = [{"type": "text", "text": content}] if isinstance(content, str) else content
        first["content"] = [*map(_audio_part, clips), *text]
        return messages
    if len(empty) != len(clips):
        raise ValueError(
            f"The `messages` have {len(empty)} audio parts without a clip, and `audio` has {len(clips)} clips. Give each clip "
            'once: in its part, {"type": "audio", "audio": clip}, or in `audio`, with {"type": "audio"} as its place.'
        )
    for part, clip in zip(empty, clips, strict=True):
        part["audio"] = clip
    return messages


def _parts(message: Mapping[str, Any], kind: str) -> Iterator[Any]:
    if not isinstance(message["content"], str):
        yield from (part for part in message["content"] if part["type"] == kind)


def _audio_part(clip: Any) -> dict[str, Any]:
    return {"type": "audio", "audio": clip}


def _without_empty_keys(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy that can be changed. In tables, all parts have the same keys, and chat templates take a key for a clip."""
    content: Any = message["content"]
    if not isinstance(content, str):
        content = [{key: value for key, value in part.items() if value is not None} for part in content]
    return {"role": message["role"], "content": content}
