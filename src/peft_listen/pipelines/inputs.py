"""Input forms of the audio-text-to-text pipeline, and their conversion to chats."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.utils.chat_template_utils import Chat, is_valid_message

from ..audio.waveform import is_list_of_clips, is_samples
from ..rows import has_messages, row_clips, row_messages, split_answer


# The question about an input that has audio but no text.
DEFAULT_INSTRUCTION = "Describe what you hear."

_ROW_KEYS = frozenset({"audio", "text", "instruction", "messages"})
_SINGLE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, np.ndarray, torch.Tensor, Chat)


def as_pipeline_inputs(inputs: Any) -> Any:
    """
    Converts the pipeline's argument to a type by which [`~transformers.Pipeline`] can tell one input from several.

    Args:
        inputs: One input, or several in a list, generator or data set.

    Returns:
        For one input, a [`Chat`] or any object that is not a list, generator or torch data set. For several, a list of
        inputs (the pipeline returns a list), or a torch data set or generator (the pipeline returns an iterator).
    """
    if _is_chat(inputs):
        return _chat(inputs)
    if is_valid_message(inputs):
        return _chat([inputs])
    if is_samples(inputs):
        return np.asarray(inputs)
    if isinstance(inputs, (list, tuple)):
        return [_chat(item) if _is_chat(item) else item for item in inputs]
    if _is_single(inputs) or isinstance(inputs, Dataset) or not isinstance(inputs, Iterable):
        return inputs
    return (item for item in inputs)


def questions_as_inputs(text: Any) -> Any:
    """
    Converts questions without audio to inputs.

    Args:
        text: A question, or a list of questions. Chats and rows are inputs already and are returned unchanged.

    Returns:
        A row `{"text": question}`, or a list of rows.
    """
    if _is_list_of_inputs(text):
        return [questions_as_inputs(question) for question in text]
    return {"text": text} if isinstance(text, str) else text


def pair_with_questions(audio: Any, questions: list[Any]) -> list[dict[str, Any]]:
    """
    Pairs clips with questions.

    Args:
        audio: One clip, which is paired with every question, or a list with one clip for each question.
        questions (`list[str]`): The questions.

    Returns:
        `list[dict]`: Rows `{"audio": clip, "text": question}`.

    Raises:
        ValueError: The two lists differ in length, the questions are not strings, or the clips are not a list.
    """
    if not all(isinstance(question, str) for question in questions):
        raise ValueError(
            "With `audio`, `text` must be a string or a list of strings. The audio of a chat belongs in its messages: "
            '{"type": "audio", "audio": ...}.'
        )
    if not _is_list_of_inputs(audio):
        if isinstance(audio, Iterable) and not _is_single(audio) and not is_samples(audio):
            raise ValueError(
                "A list of questions needs a list of clips. For chats, generators and data sets, put the question into "
                'every item: {"audio": ..., "instruction": ...}.'
            )
        audio = [audio] * len(questions)
    if len(audio) != len(questions):
        raise ValueError(
            f"Got {len(audio)} clips and {len(questions)} questions; pass one question, or one for each clip."
        )
    return [{"audio": clip, "text": question} for clip, question in zip(audio, questions, strict=True)]


def to_chat(inputs: Any, question: str | None = None) -> tuple[Chat, str | Chat]:
    """
    Converts one input to a chat.

    Args:
        inputs: A clip, a row or a chat.
        question (`str`, *optional*, defaults to [`DEFAULT_INSTRUCTION`]): The question if the input has no text.

    Returns:
        The chat, and the text of the input: its question, or the chat itself.

    Raises:
        ValueError: The input has neither audio nor text, its text is not a string, or its `messages` are not valid.
    """
    if _is_chat(inputs):
        inputs = _chat(inputs)
    if isinstance(inputs, Chat):
        return inputs, inputs
    row = {"audio": inputs}
    if isinstance(inputs, Mapping) and not _ROW_KEYS.isdisjoint(inputs):
        if has_messages(inputs):
            messages, _ = split_answer(row_messages(inputs))
            chat = _chat(messages)
            return chat, chat
        # The "text" of a row is often a transcript, so "instruction" takes precedence.
        own = next((inputs[key] for key in ("instruction", "text") if inputs.get(key) is not None), None)
        question = question if own is None else own
        row = {"audio": inputs.get("audio"), "system": inputs.get("system")}
    clips = row_clips(row)
    if question is None:
        if not clips:
            raise ValueError(f"The input {inputs!r} has neither audio nor text. Pass at least one of them.")
        question = DEFAULT_INSTRUCTION
    for name, text in (("question", question), ("system prompt", row.get("system"))):
        if text is not None and not isinstance(text, str):
            raise ValueError(f"The {name} must be a string, got a {type(text).__name__}: {text!r}.")
    return _chat(row_messages({**row, "instruction": question})), question


def ends_with_assistant(chat: Chat) -> bool:
    """Returns whether the last message of the chat is the assistant's, so that the answer continues it."""
    messages: Any = chat.messages
    return messages[-1]["role"] == "assistant"


def with_answer(chat: Chat, answer: str, continue_final_message: bool) -> list[dict[str, Any]]:
    """
    Adds the answer to a chat.

    Args:
        chat ([`Chat`]): The chat, which is not changed.
        answer (`str`): The generated text.
        continue_final_message (`bool`): Whether to append the answer to the last message, not to add a message.

    Returns:
        `list[dict]`: The messages with the answer.
    """
    *before, last = chat.messages
    if not continue_final_message:
        return [*before, last, {"role": "assistant", "content": answer}]
    if isinstance(last["content"], str):
        return [*before, {**last, "content": last["content"] + answer}]
    *parts, text = last["content"]
    return [*before, {**last, "content": [*parts, {**text, "text": text["text"] + answer}]}]


def _chat(messages: Iterable[Any]) -> Chat:
    as_list: Any = list(messages)
    return Chat(as_list)


def _is_chat(inputs: Any) -> bool:
    return isinstance(inputs, (list, tuple)) and len(inputs) > 0 and is_valid_message(inputs[0])


def _is_list_of_inputs(inputs: Any) -> bool:
    return is_list_of_clips(inputs) and not _is_chat(inputs)


def _is_single(inputs: Any) -> bool:
    return isinstance(inputs, _SINGLE_TYPES) or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples")
