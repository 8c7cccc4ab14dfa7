"""What the buttons of the page do, without its components."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from . import html
from .answering import Answer, Answering, PageError
from .variants import Variant


class Comparison(StrEnum):
    """What a second answer to the same question shows."""

    NOTHING = "nothing"
    OFF = "adapter off"
    OTHER_LENGTH = "another k"
    OTHER_MODEL = "another adapter"


@dataclass(frozen=True)
class Question:
    """
    What the visitor of the page has set.

    Attributes:
        model (`str`): name of the model.
        clip (`str`, *optional*): file of the clip.
        instruction (`str`): the instruction.
        prompt_length (`int`, *optional*): number of prompts; `None` for that of the adapter.
        comparison ([`Comparison`]): what is compared.
        other_prompt_length (`int`, *optional*): number of prompts of the second answer.
        other_model (`str`, *optional*): model of the second answer.
    """

    model: str
    clip: str | None = None
    instruction: str = ""
    prompt_length: int | None = None
    comparison: Comparison = Comparison.NOTHING
    other_prompt_length: int | None = None
    other_model: str | None = None


@dataclass(frozen=True)
class Shown:
    """
    One answer on the page: its heading, its text and its selection. Heading and selection are HTML.
    """

    heading: str = ""
    text: str = ""
    selection: str = ""


@dataclass(frozen=True)
class Result:
    """
    What the page shows for a question.

    Attributes:
        message (`str`): HTML of a refusal, or empty.
        first ([`Shown`]): the answer.
        second ([`Shown`]): the answer that is compared with it; empty if there is none.
    """

    message: str = ""
    first: Shown = Shown()
    second: Shown = Shown()


def comparisons(answering: Answering, model: str) -> list[Comparison]:
    """The comparisons that the page offers for a model."""
    description = answering.descriptions[model]
    found = [Comparison.NOTHING]
    if description.has_adapter:
        found.append(Comparison.OFF)
    if description.pool_size is not None and description.pool_size > 1:
        found.append(Comparison.OTHER_LENGTH)
    if len(answering.descriptions) > 1:
        found.append(Comparison.OTHER_MODEL)
    return found


def ask(answering: Answering, question: Question) -> Iterator[Result]:
    """
    Answers a question, and a second time if answers are compared.

    Args:
        answering ([`Answering`]): asks the models.
        question ([`Question`]): the question.

    Yields:
        [`Result`]: what the page shows so far. A question that is refused gets a message.
    """
    result = Result()
    try:
        variants = _variants(answering, question)
        instruction = question.instruction.strip()
        answering.check_instruction(instruction)
        waveform = None
        if answering.takes_audio and question.clip:
            waveform = answering.read_clip(question.clip)
        if waveform is None and not instruction:
            wanted = "Choose a clip or write an instruction." if answering.takes_audio else "Write an instruction."
            raise PageError(f"There is nothing to answer. {wanted}")
        for place, variant in zip(("first", "second"), variants, strict=False):
            for answer in answering.answer(variant, instruction or None, waveform):
                shown: Any = {place: _show(answering, variant, answer)}
                result = replace(result, **shown)
                yield result
    except PageError as error:
        yield replace(result, message=html.message(str(error)))


def _variants(answering: Answering, question: Question) -> list[Variant]:
    # The names and numbers come from the browser, which may send any.
    first = _variant(answering, question.model, question.prompt_length)
    comparison = question.comparison
    if comparison not in comparisons(answering, question.model):
        raise PageError(f"{question.model} cannot be compared with {comparison}.")
    if comparison == Comparison.NOTHING:
        return [first]
    if comparison == Comparison.OFF:
        return [first, replace(first, is_on=False, prompt_length=None)]
    if comparison == Comparison.OTHER_LENGTH:
        return [first, _variant(answering, question.model, question.other_prompt_length)]
    return [first, _variant(answering, question.other_model, None)]


def _variant(answering: Answering, model: str | None, prompt_length: int | None) -> Variant:
    if model not in answering.descriptions:
        raise PageError(
            f"There is no model {model!r} on this page. Choose one of {', '.join(answering.descriptions)}."
        )
    pool_size = answering.descriptions[model].pool_size
    if pool_size is None or prompt_length is None:
        return Variant(model)
    if not isinstance(prompt_length, int) or not 1 <= prompt_length <= pool_size:
        raise PageError(
            f"k must be a whole number from 1 to {pool_size}, the size of the pool, got {prompt_length!r}."
        )
    return Variant(model, prompt_length=prompt_length)


def _show(answering: Answering, variant: Variant, answer: Answer) -> Shown:
    return Shown(
        heading=html.heading(title_of(answering, variant), _progress(answering, answer)),
        text="(The answer is empty.)" if answer.is_finished and not answer.text.strip() else answer.text,
        selection=_selection(answering, variant, answer),
    )


def title_of(answering: Answering, variant: Variant) -> str:
    """What the heading of an answer calls a variant."""
    parts = [variant.model] if len(answering.descriptions) > 1 else []
    description = answering.descriptions[variant.model]
    if not variant.is_on:
        parts.append("adapter off")
    elif description.pool_size is not None:
        parts.append(f"k = {variant.prompt_length or description.prompt_length}")
    return ", ".join(parts) or variant.model


def _progress(answering: Answering, answer: Answer) -> str:
    if answer.is_timed_out:
        return f"ended after {answering.settings.timeout:g} s, the limit of this page"
    if answer.is_finished:
        return f"{answer.seconds:.1f} s"
    return f"{answer.seconds:.0f} s …" if answer.seconds else "waits …"


def _selection(answering: Answering, variant: Variant, answer: Answer) -> str:
    if answer.selected is not None:
        return html.selection(answer.selected)
    if not variant.is_on:
        return html.note("The adapter is off: no prompts are selected.")
    if answering.descriptions[variant.model].pool_size is None:
        return html.note("This model has no LiSTEN adapter, so no prompts are selected.")
    return html.note("The prompts are selected when the model has read the question.")
