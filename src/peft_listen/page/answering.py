"""Answers the questions of the page, one at a time, while their text is generated."""

from __future__ import annotations

import io
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..analysis import NearestWords
from ..audio import AudioLimits, LimitError, load_audio
from ..pipelines import AudioTextToTextPipeline
from ..pipelines.asking import ask, make_streamer
from ..serving import ServedModels
from ..tuners.listen import SelectionRecord
from ..unicode import half_surrogate_problem
from .selected_prompts import SelectedPrompts, selected_prompts
from .settings import PageSettings
from .task_shares import TaskShares
from .variants import Variant, active, describe


logger = logging.getLogger(__name__)

# Seconds between two checks whether a waiting question is given up.
_CHECK_SECONDS = 0.2


class PageError(Exception):
    """A question that is refused; the visitor of the page reads the message."""


@dataclass(frozen=True)
class Answer:
    """
    An answer so far.

    Attributes:
        text (`str`): its text.
        selected ([`SelectedPrompts`], *optional*): the prompts that were selected for it, if a LiSTEN adapter is active.
        is_finished (`bool`): whether it is whole.
        seconds (`float`): time since its generation began; 0 while it waits for other questions.
        is_timed_out (`bool`): whether its time was over before it was whole.
    """

    text: str = ""
    selected: SelectedPrompts | None = None
    is_finished: bool = False
    seconds: float = 0.0
    is_timed_out: bool = False


class Answering:
    """
    Asks the models. Questions of several threads are answered one after another.

    Args:
        models ([`~peft_listen.serving.ServedModels`]): The models, which nothing else may use.
        settings ([`PageSettings`]): The limits.
        shares (`Mapping[str, TaskShares]`, *optional*): For models by name, how often each task selects each prompt.
        words (`Mapping[str, NearestWords]`, *optional*): For models by name, the words that are nearest to each prompt.

    Attributes:
        descriptions (`dict[str, Description]`): What the models have, by name.
    """

    def __init__(
        self,
        models: ServedModels,
        settings: PageSettings,
        shares: Mapping[str, TaskShares] | None = None,
        words: Mapping[str, NearestWords] | None = None,
    ) -> None:
        self.settings = settings
        self.descriptions = {name: describe(models, name) for name in models.names}
        self._models = models
        self._shares = dict(shares or {})
        self._words = dict(words or {})
        self._lock = threading.Lock()

    @property
    def takes_audio(self) -> bool:
        """Whether the models understand audio."""
        return isinstance(self._models.pipe, AudioTextToTextPipeline)

    def read_clip(self, path: str) -> np.ndarray:
        """
        Reads an uploaded clip.

        Args:
            path (`str`): Its file.

        Returns:
            `np.ndarray` of shape `(num_samples,)`, float32, 16 kHz.

        Raises:
            PageError: It is too large or too long, or cannot be decoded.
        """
        settings = self.settings
        limits = AudioLimits(max_seconds=settings.max_audio_seconds, decoding_seconds=settings.timeout)
        try:
            if Path(path).stat().st_size > settings.max_upload_bytes:
                megabytes = settings.max_upload_bytes / (1 << 20)
                raise PageError(
                    f"The file is larger than {megabytes:g} MB, the limit of this page. Choose a smaller one."
                )
            content = Path(path).read_bytes()
        except FileNotFoundError as error:
            raise PageError("The clip is no longer there. Choose it again.") from error
        except OSError as error:
            # Not the error itself, which names the file.
            raise PageError(f"The clip cannot be read. {error.strerror or ''}".rstrip()) from error
        try:
            # Not the path, which the messages of errors would contain.
            file = io.BytesIO(content)
            file.name = "The file"
            return load_audio(file, limits=limits)
        except LimitError as error:
            raise PageError(
                f"The clip is longer than {settings.max_audio_seconds:g} seconds, the limit of this page, or takes too long "
                "to decode. Choose a shorter one."
            ) from error
        except (OSError, ValueError) as error:
            raise PageError(f"The clip cannot be read. {error}") from error

    def check_instruction(self, instruction: str) -> None:
        """
        Checks the length and the characters of an instruction.

        Args:
            instruction (`str`): The instruction.

        Raises:
            PageError: It is too long, or contains half a surrogate pair.
        """
        limit = self.settings.max_text_characters
        if len(instruction) > limit:
            raise PageError(f"The instruction has {len(instruction)} characters; this page takes {limit}. Shorten it.")
        if problem := half_surrogate_problem(instruction):
            raise PageError(f"The instruction {problem}")

    def answer(self, variant: Variant, instruction: str | None, waveform: np.ndarray | None) -> Iterator[Answer]:
        """
        Asks a model one question.

        Args:
            variant ([`Variant`]): The model, and how it is asked.
            instruction (`str`, *optional*): The question.
            waveform (`np.ndarray` of shape `(num_samples,)`, *optional*): The clip, at 16 kHz.

        Yields:
            [`Answer`]: the answer so far, at least every fifth of a second; the last one is finished. If the iterator is
            closed, the generation ends with the next token.

        Raises:
            PageError: The model does not take the question, or fails; the log then has the reason.
        """
        events: queue.Queue[Any] = queue.Queue()
        call = _Call(variant, instruction, waveform, events.put)
        threading.Thread(target=self._run, args=(call,), name="peft-listen-answer", daemon=True).start()
        answer, begin = Answer(), None
        try:
            while not answer.is_finished:
                if begin is not None:
                    answer = replace(answer, seconds=time.monotonic() - begin)
                yield answer
                try:
                    event = events.get(timeout=_CHECK_SECONDS)
                except queue.Empty:
                    continue
                if isinstance(event, _Begun):
                    begin = time.monotonic()
                elif isinstance(event, SelectedPrompts):
                    answer = replace(answer, selected=event)
                elif isinstance(event, str):
                    answer = replace(answer, text=answer.text + event)
                elif isinstance(event, Exception):
                    raise _page_error(event) from event
                else:
                    answer = replace(
                        answer,
                        text=event.text,
                        is_finished=True,
                        seconds=event.seconds,
                        is_timed_out=event.seconds >= self.settings.timeout,
                    )
            yield answer
        finally:
            call.is_given_up.set()

    def _run(self, call: _Call) -> None:
        while not self._lock.acquire(timeout=_CHECK_SECONDS):
            if call.is_given_up.is_set():
                return
        try:
            call.send(_Begun())
            start = time.monotonic()
            text = self._generate(call)
            call.send(_Finished(text, time.monotonic() - start))
        except Exception as error:
            call.send(error)
        finally:
            self._lock.release()

    def _generate(self, call: _Call) -> str:
        pipe = self._models.pipe
        with active(self._models, call.variant) as layer, ExitStack() as stack:
            if layer is not None:
                pool, name = layer.pool_of(), call.variant.model
                shares, words = self._shares.get(name), self._words.get(name)
                has_sent = False

                def record(selection: SelectionRecord) -> None:
                    nonlocal has_sent
                    if not has_sent:  # further ones are of other inputs, such as those of classifier-free guidance
                        has_sent = True
                        call.send(selected_prompts(selection, pool, shares, words))

                stack.enter_context(layer.recording(record))
            return ask(
                pipe,
                call.instruction,
                call.waveform,
                streamer=make_streamer(pipe, call.send),
                max_new_tokens=self.settings.max_new_tokens,
                max_time=self.settings.timeout,
                stopping_criteria=StoppingCriteriaList([_GivenUp(call.is_given_up)]),
            )


@dataclass(frozen=True)
class _Call:
    """A question for the thread that answers it, which sends what it has; it ends early if the question is given up."""

    variant: Variant
    instruction: str | None
    waveform: np.ndarray | None
    send: Callable[[Any], None]
    is_given_up: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class _Begun:
    """The question has waited for others, and its generation begins."""


@dataclass(frozen=True)
class _Finished:
    text: str
    seconds: float


class _GivenUp(StoppingCriteria):
    def __init__(self, is_given_up: threading.Event) -> None:
        self._is_given_up = is_given_up

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Returns `(batch_size,)`, whether each row ends; `input_ids` are `(batch_size, length)`."""
        return torch.full((len(input_ids),), self._is_given_up.is_set(), device=input_ids.device)  # type: ignore[return-value]


def _page_error(error: Exception) -> PageError:
    """The error that the visitor reads. Messages of other errors than these may contain names of the server's files."""
    if isinstance(error, ValueError):
        return PageError(f"The model does not take this question. {error}")
    logger.error("A question failed.", exc_info=error)
    return PageError("The model failed to answer. The log of the page, in the terminal, has the reason.")
