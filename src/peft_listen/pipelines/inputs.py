"""The forms in which the audio-text-to-text pipeline takes its inputs; every one of them becomes a chat."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers.utils.chat_template_utils import Chat, is_valid_message

from ..models.audio_listen.chat_template import audio_of_part


# Asked when an input has audio but no text.
DEFAULT_INSTRUCTION = "Describe what you hear."

_ROW_KEYS = frozenset({"audio", "text", "instruction"})
_SINGLE_TYPES = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, np.ndarray, torch.Tensor, Chat)


def as_pipeline_inputs(inputs: Any) -> Any:
    """
    Lets [`~transformers.Pipeline`] tell one input from several.

    Returns:
        One input: a [`Chat`] or anything that is neither list, generator nor torch data set. Several: a list of inputs
        (their answers come in a list), a torch data set or a generator (their answers come in an iterator).
    """
    if _is_chat(inputs):
        return _chat(inputs)
    if is_valid_message(inputs):
        return _chat([inputs])
    if _is_samples(inputs):
        return np.asarray(inputs)
    if isinstance(inputs, (list, tuple)):
        return [_chat(item) if _is_chat(item) else item for item in inputs]
    if _is_single(inputs) or isinstance(inputs, Dataset) or not isinstance(inputs, Iterable):
        return inputs
    return (item for item in inputs)


def questions_as_inputs(text: Any) -> Any:
    """Questions without audio as inputs, one or a list; chats and rows are inputs already."""
    if _is_batch(text):
        return [questions_as_inputs(question) for question in text]
    return {"text": text} if isinstance(text, str) else text


def pair_with_questions(audio: Any, questions: list[Any]) -> list[dict[str, Any]]:
    """
    Rows of clips and their questions.

    Args:
        audio: One clip, about which every question is asked, or a list with one clip for each question.
        questions (`list[str]`): The questions.

    Raises:
        ValueError: The two lists differ in length, the questions are not strings, or the clips are not a list.
    """
    if not all(isinstance(question, str) for question in questions):
        raise ValueError(
            "`text` beside `audio` must be a string or a list of strings. In a chat, audio stands in the messages: "
            '{"type": "audio", "audio": ...}.'
        )
    if not _is_batch(audio):
        if isinstance(audio, Iterable) and not _is_single(audio) and not _is_samples(audio):
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
    One input as a chat.

    Args:
        inputs: A clip, a row or a chat.
        question (`str`, *optional*): Asked if the input has no text of its own; [`DEFAULT_INSTRUCTION`] if not given.

    Returns:
        The chat, and the text that came with the input: the question, or the chat itself.

    Raises:
        ValueError: The input has neither audio nor text, or its text is no string.
    """
    if _is_chat(inputs):
        inputs = _chat(inputs)
    if isinstance(inputs, Chat):
        return inputs, inputs
    clips = inputs
    if isinstance(inputs, Mapping) and not _ROW_KEYS.isdisjoint(inputs):
        clips = inputs.get("audio")
        # A row's "text" is often the transcript, so "instruction" goes first.
        own = next((inputs[key] for key in ("instruction", "text") if inputs.get(key) is not None), None)
        question = question if own is None else own
    clips = [] if clips is None else list(clips) if _is_batch(clips) else [clips]
    if question is None:
        if not clips:
            raise ValueError(f"The input {inputs!r} has neither audio nor text. Give it one of them.")
        question = DEFAULT_INSTRUCTION
    if not isinstance(question, str):
        raise ValueError(f"The question must be a string, got a {type(question).__name__}: {question!r}.")
    content = [{"type": "audio", "audio": clip} for clip in clips] + [{"type": "text", "text": question}]
    return _chat([{"role": "user", "content": content}]), question


def take_out_clips(chat: Chat) -> tuple[list[dict[str, Any]], list[Any]]:
    """
    Splits a chat into what the chat template renders and what is heard.

    Returns:
        The messages, with nothing but `{"type": "audio"}` left of their audio parts, and the clips in their order.

    Raises:
        ValueError: An audio part has no audio.
    """
    bare, clips = [], []
    messages: Any = chat.messages
    for message in messages:
        content = message["content"]
        if isinstance(content, (list, tuple)):
            parts = []
            for part in content:
                if part.get("type") == "audio":
                    clip = audio_of_part(part)
                    if clip is None:
                        raise ValueError(
                            f"A message has an audio part without audio: {part!r}. Expected "
                            '{"type": "audio", "audio": ...} with a clip that `load_audio` takes.'
                        )
                    clips.append(clip)
                    part = {"type": "audio"}
                parts.append(part)
            message = {**message, "content": parts}
        bare.append(message)
    return bare, clips


def ends_with_assistant(chat: Chat) -> bool:
    """Whether the chat's last message is the assistant's, so that the answer continues it."""
    messages: Any = chat.messages
    return messages[-1]["role"] == "assistant"


def with_answer(chat: Chat, answer: str, continue_final_message: bool) -> list[dict[str, Any]]:
    """The chat's messages with the answer as their last, or at the end of their last."""
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


def _is_samples(inputs: Any) -> bool:
    """Whether this is one clip, given as a list of numbers."""
    return isinstance(inputs, (list, tuple)) and len(inputs) > 0 and isinstance(inputs[0], (int, float, np.number))


def _is_batch(inputs: Any) -> bool:
    return isinstance(inputs, (list, tuple)) and not _is_chat(inputs) and not _is_samples(inputs)


def _is_single(inputs: Any) -> bool:
    return isinstance(inputs, _SINGLE_TYPES) or hasattr(inputs, "read") or hasattr(inputs, "get_all_samples")
