"""Renders the messages of a row to the text that is trained, and finds the answers in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from .answer_end import AnswerEnd, without_empty_reasoning, without_trailing_reasoning
from .rows import Messages, text_of


class Piece(NamedTuple):
    """
    A part of the text of a row.

    Attributes:
        text (`str`): the text; that of an answer includes its end token, if the chat template writes one.
        is_answer (`bool`): whether it is trained.
    """

    text: str
    is_answer: bool


def render_row(
    processor: Any, messages: Messages, end: AnswerEnd | None, every_answer: bool, variables: Mapping[str, Any]
) -> list[Piece]:
    """
    Renders messages that end with an answer.

    An answer begins where the generation prompt of the messages before it ends, and includes its end token. An empty reasoning
    block that the chat template writes there is left out.

    Args:
        processor (`ProcessorMixin`): its chat template is used.
        messages (`list[dict]`): see [`~peft_listen.rows.split_clips`].
        end ([`AnswerEnd`], *optional*): end of answers.
        every_answer (`bool`): whether earlier answers are trained too, or are a part of the prompt.
        variables (`Mapping`): variables for the chat template.

    Returns:
        `list[Piece]`: prompts and answers in turn; the last piece is the last answer.

    Raises:
        ValueError: if the template does not render the messages, an answer does not follow its generation prompt, or an
            earlier answer is not rendered as it is.
    """
    full = _render(processor, messages, variables, add_generation_prompt=False)
    turns = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
    pieces: list[Piece] = []
    position = 0
    for turn in turns if every_answer else turns[-1:]:
        answer = text_of(messages[turn])
        generation_prompt = _render(processor, messages[:turn], variables, add_generation_prompt=True)
        start, added = _answer_start(full, generation_prompt, position)
        text = without_empty_reasoning(full[start:], answer)
        if turn == turns[-1]:
            pieces.append(Piece(full[position:start] + added, is_answer=False))
            if end is not None and end.is_rendered:
                text = text.removesuffix(end.tail)
            return [*pieces, Piece(text.rstrip("\n"), is_answer=True)]
        length = _answer_length(text, answer, end, turn)
        pieces += [Piece(full[position:start], is_answer=False), Piece(text[:length], is_answer=True)]
        position = len(full) - len(text) + length
    raise ValueError("The messages have no answer: none of them is the assistant's.")


def _render(processor: Any, messages: Messages, variables: Mapping[str, Any], add_generation_prompt: bool) -> str:
    try:
        return processor.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=False, **variables
        )
    except Exception as error:  # templates raise errors of many types
        raise ValueError(
            f"The chat template does not render these messages ({type(error).__name__}: {error}). Their roles are "
            f"{', '.join(message['role'] for message in messages)}. Write the row in a form that the template supports, or set "
            "another `chat_template` of the processor."
        ) from error


def _answer_start(full: str, generation_prompt: str, position: int) -> tuple[int, str]:
    """
    Where an answer begins in the whole text, and what the generation prompt has beyond that: some templates write an empty
    reasoning block in the generation prompt, but not before an answer.
    """
    for prompt in (generation_prompt, without_trailing_reasoning(generation_prompt)):
        if full.startswith(prompt) and max(len(prompt), position) < len(full):
            return len(prompt), generation_prompt[len(prompt) :]
    raise ValueError(
        "The chat template does not render the assistant's answer directly after the generation prompt, so the "
        "answer cannot be separated from the prompt. Set a `chat_template` of the processor that does.\n"
        f"Prompt: {generation_prompt!r}\nWith the answer: {full!r}"
    )


def _answer_length(text: str, answer: str, end: AnswerEnd | None, turn: int) -> int:
    """Length of an earlier answer, with its end token, at the beginning of `text`."""
    answer = answer.strip()
    begin = len(text) - len(text.lstrip())
    if not text.startswith(answer, begin if answer else 0):
        raise ValueError(
            f"The chat template renders the answer of message {turn} in another form when other messages follow it, for example "
            f"without its reasoning: {text[:200]!r} instead of {answer[:200]!r}. Train the last answer of each row only, with "
            '`trained_answers="last"`.'
        )
    length = begin + len(answer) if answer else 0
    if end is not None and end.is_rendered:
        rest = text[length:]
        if not rest.lstrip().startswith(end.token):
            raise ValueError(
                f"The chat template writes {end.token!r} after the last answer, but not after that of message {turn}, so nothing "
                "would teach the model to end it. Train the last answer of each row only, with "
                '`trained_answers="last"`.'
            )
        length += rest.index(end.token) + len(end.token)
    return length
