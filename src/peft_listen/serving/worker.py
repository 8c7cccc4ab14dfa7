"""The thread that answers requests: those that wait are answered in batches, each with its own end."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import StoppingCriteria

from .answer_text import AnswerText, FinishReason
from .context_length import ContextLength
from .errors import RequestError, timeout_error
from .models import ServedModels


logger = logging.getLogger(__name__)

# Logits that are divided by less may overflow. Probabilities that are NaN end all work of a process with CUDA.
_MIN_TEMPERATURE = 0.01

# OpenAI's clients know no other settings that leave tokens out than `top_p`, so those of the model are switched off in a
# request that asks for sampling.
_WHOLE_VOCABULARY = {
    "top_k": 0,
    "top_h": None,
    "min_p": None,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
}


@dataclass(frozen=True)
class Group:
    """What the requests of one batch have in common."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None

    def accepts(self, other: Group) -> bool:
        """Whether a batch of this group may contain a request of another one. With a seed, a request is alone: the rows of a
        batch draw from one sequence of random numbers."""
        return self == other and (self.seed is None or self.temperature == 0)


@dataclass(frozen=True)
class Finished:
    """The end of an answer."""

    text: str
    reason: FinishReason
    num_prompt_tokens: int
    num_new_tokens: int


@dataclass(eq=False)
class Job:
    """
    One request on its way through the worker.

    Args:
        row (`dict`): Output of the pipeline's `preprocess`.
        group ([`Group`]): Requests of the same group are answered at once.
        deadline (`float`): Time of `time.monotonic` at which the request is given up.
        send (`Callable`): Called in the worker's thread with pieces of text (`str`, only for streams) and, last, with
            [`Finished`] or an exception. It must not block.
        length (`int`): Longest answer in tokens.
        stop (`Sequence[str]`, *optional*): Texts that end the answer.
        is_streamed (`bool`, *optional*, defaults to `False`): Whether pieces of text are sent.
    """

    row: dict[str, Any]
    group: Group
    deadline: float
    send: Callable[[str | Finished | Exception], None]
    length: int
    stop: Sequence[str] = ()
    is_streamed: bool = False
    has_sent_text: bool = field(default=False, init=False)
    is_finished: bool = field(default=False, init=False)
    _is_cancelled: bool = field(default=False, init=False)

    def cancel(self) -> None:
        """Gives up the request, whose client has gone; may be called from any thread."""
        self._is_cancelled = True

    @property
    def problem(self) -> RequestError | None:
        """Why the request is given up, if it is."""
        if self._is_cancelled:
            return RequestError("The client has closed the connection.", status=499, code="cancelled")
        if time.monotonic() > self.deadline:
            return timeout_error()
        return None

    def finish(self, result: Finished | Exception) -> None:
        """Sends the result, unless one was sent."""
        if not self.is_finished:
            self.is_finished = True
            self.send(result)


class Worker:
    """
    Answers requests in a thread of its own, the only one that calls the pipeline's model.

    A row of a batch gets the answer that it gets alone, up to rounding. A batch ends with its longest answer; requests that
    arrive meanwhile are answered in the next one.

    Args:
        models ([`ServedModels`]): The models.
        batch_size (`int`): Largest number of requests in a batch.
    """

    def __init__(self, models: ServedModels, batch_size: int) -> None:
        self._models = models
        self._batch_size = batch_size
        self._context = ContextLength(models.pipe.model)
        self._ends = models.pipe.end_token_ids
        self._waiting: deque[Job] = deque()
        self._changed = threading.Condition()
        self._is_stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="peft-listen-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Gives up all requests, and ends the thread."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def submit(self, job: Job) -> None:
        """Adds a request. Its `send` gets a result in any case."""
        with self._changed:
            if not self._is_stopping:
                self._waiting.append(job)
                self._changed.notify()
                return
        job.finish(_stopping())

    def _run(self) -> None:
        while batch := self._take():
            try:
                self._answer(batch)
            except Exception as error:
                logger.exception("A batch of requests failed.")
                for job in batch:
                    job.finish(error)

    def _take(self) -> list[Job]:
        """The next batch: the request that has waited longest, and others of its group. Empty when the worker stops."""
        with self._changed:
            while True:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                waiting = list(self._waiting)
                self._waiting.clear()
                if self._is_stopping:
                    for job in waiting:
                        job.finish(_stopping())
                    return []
                batch: list[Job] = []
                for job in waiting:
                    if problem := job.problem:
                        job.finish(problem)
                    elif len(batch) < self._batch_size and (not batch or batch[0].group.accepts(job.group)):
                        batch.append(job)
                    else:
                        self._waiting.append(job)
                if batch:
                    return batch

    def _answer(self, jobs: list[Job]) -> None:
        tried_alone = []
        try:
            self._generate(jobs)
        except Exception as error:
            # The frames of the error hold the tensors of the batch, for which there may be no memory twice. They are cleared
            # before the error is handed over: the thread of the event loop raises it again, in frames of its own.
            traceback.clear_frames(error.__traceback__)
            for job in [job for job in jobs if not job.is_finished]:
                if len(jobs) == 1 or job.has_sent_text:
                    if not isinstance(error, RequestError):
                        logger.exception("A request failed.", exc_info=error)
                    job.finish(error)
                else:
                    tried_alone.append(job)
        # One request may be at fault, or all of them together too large.
        for job in tried_alone:
            self._answer([job])

    def _generate(self, jobs: list[Job]) -> None:
        pipe, group = self._models.pipe, jobs[0].group
        self._models.activate(group.model)
        batch = self._collate(jobs)
        lengths = batch["model_inputs"]["attention_mask"].sum(dim=-1).tolist()
        allowed = []
        for job, length in zip(jobs, lengths, strict=True):
            try:
                allowed.append(self._context.allowed_new_tokens(length, job.length))
            except RequestError as error:
                job.finish(error)
        if len(allowed) < len(jobs):
            if remaining := [job for job in jobs if not job.is_finished]:
                self._generate(remaining)
            return
        rows = [
            _Row(job, AnswerText(pipe.tokenizer, self._ends, length, job.stop, job.is_streamed), num_tokens)
            for job, length, num_tokens in zip(jobs, allowed, lengths, strict=True)
        ]
        settings: dict[str, Any] = {"max_new_tokens": max(allowed), "eos_token_id": self._ends or None}
        settings |= {"num_beams": 1, "num_return_sequences": 1, **_sampling(group)}
        with torch.random.fork_rng() if group.seed is not None else nullcontext():
            if group.seed is not None:
                torch.manual_seed(group.seed)
            pipe.forward(batch, stopping_criteria=[_Ends(rows, lambda: self._is_stopping)], **settings)
        for row in rows:
            row.finish()

    def _collate(self, jobs: list[Job]) -> dict[str, Any]:
        try:
            return self._models.pipe.collate([job.row for job in jobs])
        except (TemplateError, ValueError) as error:
            raise RequestError(
                f"The model's processor does not accept these messages: {error}", param="messages"
            ) from error


def _sampling(group: Group) -> dict[str, Any]:
    if group.temperature is None and group.top_p is None:
        return {}  # the model's own settings
    if group.temperature is not None and group.temperature < _MIN_TEMPERATURE:
        return {"do_sample": False}
    chosen = {"temperature": group.temperature or 1.0, "top_p": group.top_p or 1.0}
    return {"do_sample": True, **_WHOLE_VOCABULARY, **chosen}


def _stopping() -> RequestError:
    return RequestError("The server is stopping.", status=503, code="stopping", is_temporary=True)


@dataclass
class _Row:
    """A row of a running batch."""

    job: Job
    text: AnswerText
    num_prompt_tokens: int

    def add(self, token_id: int) -> bool:
        """Adds a token, and returns whether the row needs no more."""
        if self.job.is_finished:
            return True
        if problem := self.job.problem:
            self.job.finish(problem)
            return True
        has_ended = self.text.add(token_id)
        self._send()
        if has_ended:
            self.finish()
        return has_ended

    def finish(self) -> None:
        """Ends the answer, unless it has ended. Generation ends before the text does at the longest answer only."""
        if self.job.is_finished:
            return
        self.text.finish("length")
        self._send()
        reason = self.text.finish_reason
        assert reason is not None
        self.job.finish(Finished(self.text.text, reason, self.num_prompt_tokens, self.text.num_tokens))

    def _send(self) -> None:
        if self.job.is_streamed and (piece := self.text.take()):
            self.job.has_sent_text = True
            self.job.send(piece)


class _Ends(StoppingCriteria):
    """Gives each row its tokens while they are generated, and ends it."""

    def __init__(self, rows: list[_Row], is_stopping: Callable[[], bool]) -> None:
        self._rows = rows
        self._is_stopping = is_stopping

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Returns `(batch_size,)`, whether each row has ended; `input_ids` are `(batch_size, length)`."""
        if self._is_stopping():
            for row in self._rows:
                row.job.finish(_stopping())
        tokens = input_ids[:, -1].tolist()
        ended = [row.add(token) for row, token in zip(self._rows, tokens, strict=True)]
        return torch.tensor(ended, device=input_ids.device)  # type: ignore[return-value]
