"""The application: OpenAI's chat completions over one model and its adapters."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .chat_request import ChatRequest, parse_chat_request
from .errors import RequestError, timeout_error
from .models import ServedModels
from .preparation import Preparation
from .settings import ServerSettings
from .worker import Finished, Group, Job, Worker


logger = logging.getLogger(__name__)

# Seconds between two checks whether the client of a waiting request is still there, and its time is not over.
_CHECK_SECONDS = 0.5
# A body that is too large is read up to this multiple of the limit and thrown away, because many clients read the answer
# only after they have sent the body.
_READ_FACTOR = 4


def create_app(models: ServedModels, settings: ServerSettings | None = None) -> Starlette:
    """
    The application, for an ASGI server such as uvicorn. It answers `POST /v1/chat/completions`, `GET /v1/models` and `GET
    /health`.

    Args:
        models ([`ServedModels`]): The models. While the application runs, nothing else may call their pipeline.
        settings ([`ServerSettings`], *optional*): The limits. `max_connections` and `allowed_hosts` concern [`Server`]
            alone: here they are the work of the ASGI server, or of a middleware such as Starlette's
            `TrustedHostMiddleware`.

    Returns:
        `Starlette`: the application. Its lifespan starts and stops the thread that answers requests, once. An application
        that mounts `app` has to run it: `Starlette(routes=[Mount("/llm", app)], lifespan=app.router.lifespan_context)`.
    """
    chat = _Chat(models, settings or ServerSettings())

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        chat.start()
        try:
            yield
        finally:
            await asyncio.to_thread(chat.stop)

    return Starlette(
        routes=[
            Route("/v1/chat/completions", chat.complete, methods=["POST"]),
            Route("/v1/models", chat.list_models, methods=["GET"]),
            Route("/v1/models/{name:path}", chat.show_model, methods=["GET"]),
            Route("/health", _health, methods=["GET"]),
        ],
        exception_handlers={
            RequestError: _on_request_error,
            HTTPException: _on_http_error,
            Exception: _on_other_error,
        },
        lifespan=lifespan,
    )


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    headers = {"Retry-After": "1"} if error.is_temporary else {}
    if not error.is_temporary:
        # OpenAI's clients repeat requests after some errors that a repetition does not change.
        headers["x-should-retry"] = "false"
    return JSONResponse(error.body, status_code=error.status, headers=headers)


def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = (
        f"{request.method} {request.url.path}: {error.detail}. This server has /v1/chat/completions and /v1/models."
    )
    body = RequestError(message, error.status_code).body
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


def _on_other_error(request: Request, error: Exception) -> Response:
    # Starlette logs the error.
    return JSONResponse(_internal_error().body, status_code=500)


def _internal_error() -> RequestError:
    return RequestError("The server failed to answer. Its log has the reason.", status=500, code="internal_error")


@dataclass
class _Channel:
    """What the worker sends for one request, and the place of the request among those in progress."""

    events: asyncio.Queue[str | Finished | Exception]
    job: Job

    async def next(self, request: Request) -> str | Finished:
        """The next event. Gives up the request if its client is gone, and does not wait longer than its time."""
        waiting = asyncio.ensure_future(self.events.get())
        try:
            while not (await asyncio.wait([waiting], timeout=_CHECK_SECONDS))[0]:
                if await request.is_disconnected():
                    self.job.cancel()
                if time.monotonic() > self.job.deadline + _CHECK_SECONDS:
                    # The worker does not see it before the end of a step or of another batch.
                    raise timeout_error()
        except asyncio.CancelledError:
            self.job.cancel()
            raise
        finally:
            waiting.cancel()
        event = waiting.result()
        if isinstance(event, RequestError):
            raise event
        if isinstance(event, Exception):
            raise _internal_error() from event
        return event


class _Stream(StreamingResponse):
    """A stream of events, whose request is given up if the client closes the connection, at whatever time."""

    def __init__(self, content: AsyncIterator[str], job: Job) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._job = job

    async def __call__(self, *args: Any) -> None:
        try:
            await super().__call__(*args)
        finally:
            self._job.cancel()


class _Chat:
    """The endpoints, and the requests in progress."""

    def __init__(self, models: ServedModels, settings: ServerSettings) -> None:
        self._models = models
        self._settings = settings
        self._preparation = Preparation(models.pipe, settings)
        self._worker = Worker(models, settings.batch_size)
        self._threads = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="peft-listen-decoding")
        self._num_requests = 0
        self._is_started = False
        self._created = int(time.time())

    def start(self) -> None:
        self._worker.start()
        self._is_started = True

    def stop(self) -> None:
        self._worker.stop()
        self._threads.shutdown(cancel_futures=True)

    # ------------------------------------------------------------------------------------------------------ models

    async def list_models(self, request: Request) -> Response:
        self._check_key(request)
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self._models.names]})

    async def show_model(self, request: Request) -> Response:
        self._check_key(request)
        name = request.path_params["name"]
        self._check_model(name)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": "peft-listen"}

    def _check_model(self, name: str) -> None:
        if name not in self._models:
            served = ", ".join(map(repr, self._models.names))
            raise RequestError(
                f"There is no model {name[:200]!r} on this server, which has {served}.",
                status=404,
                param="model",
                code="model_not_found",
            )

    # -------------------------------------------------------------------------------------------- chat completions

    async def complete(self, request: Request) -> Response:
        deadline = time.monotonic() + self._settings.timeout
        self._check_key(request)
        self._check_headers(request)
        if not self._is_started:
            raise RuntimeError(
                "The application was not started. Its lifespan must run: an application that mounts `app` needs "
                "`lifespan=app.router.lifespan_context`."
            )
        release = self._admit()
        try:
            body = await self._read(request, deadline)
            loop = asyncio.get_running_loop()
            parsed, row = await loop.run_in_executor(self._threads, self._prepare, body, deadline)
            del body
            channel = self._submit(parsed, row, deadline, release)
        except BaseException:
            release()
            raise
        # From here on, the place is kept until the worker has finished the request.
        identity = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": parsed.model}
        if not parsed.stream:
            return await self._whole(request, channel, identity)
        # Errors before the first text have a status code of their own.
        first = await channel.next(request)
        usage = parsed.stream_options is not None and bool(parsed.stream_options.include_usage)
        return _Stream(self._pieces(request, channel, first, identity, usage), channel.job)

    def _check_key(self, request: Request) -> None:
        key = self._settings.api_key
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        # The bytes of the header are compared. The name of the scheme may be written in any case (RFC 9110).
        is_right = key is None or hmac.compare_digest(given.strip().encode("latin-1"), key.encode())
        if key is not None and not (scheme.lower() == "bearer" and is_right):
            raise RequestError(
                "The key of this server is missing or wrong. Send it as `Authorization: Bearer ...`.",
                status=401,
                code="invalid_api_key",
            )

    def _check_headers(self, request: Request) -> None:
        # With this type, a browser asks the server before it sends a request of another site, and the server refuses.
        media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media_type != "application/json":
            raise RequestError(
                f"The body has the type {media_type[:100]!r}; expected JSON. Send `Content-Type: application/json`.",
                status=415,
            )

    def _admit(self) -> Callable[[], None]:
        """Counts a request in progress; the returned function ends that."""
        if self._num_requests >= self._settings.max_requests:
            raise RequestError(
                f"The server has {self._num_requests} requests in progress, which is its limit. Try again later.",
                status=429,
                code="too_many_requests",
                is_temporary=True,
            )
        self._num_requests += 1
        is_counted = True

        def release() -> None:
            nonlocal is_counted
            self._num_requests -= is_counted
            is_counted = False

        return release

    async def _read(self, request: Request, deadline: float) -> bytes:
        limit = self._settings.max_request_bytes
        size, pieces = 0, []
        try:
            async with asyncio.timeout(deadline - time.monotonic()):
                async for piece in request.stream():
                    size += len(piece)
                    if size <= limit:
                        pieces.append(piece)
                    elif size > _READ_FACTOR * limit:
                        break
        except TimeoutError as error:
            raise RequestError(
                f"The body did not arrive within {self._settings.timeout:g} seconds.", status=408, code="timeout"
            ) from error
        except ClientDisconnect as error:
            raise RequestError("The client has closed the connection.", status=499, code="cancelled") from error
        if size > limit:
            raise RequestError(
                f"The body is larger than the limit of {limit} bytes. Send shorter or compressed audio (MP3, FLAC, OGG).",
                status=413,
                code="request_too_large",
            )
        return b"".join(pieces)

    def _prepare(self, body: bytes, deadline: float) -> tuple[ChatRequest, dict[str, Any]]:
        parsed = parse_chat_request(body)
        self._check_model(parsed.model)
        row = self._preparation.prepare(parsed, deadline)
        # Without the messages, whose clips in base64 would stay in memory until the answer.
        return parsed.model_copy(update={"messages": []}), row

    def _submit(
        self, parsed: ChatRequest, row: dict[str, Any], deadline: float, release: Callable[[], None]
    ) -> _Channel:
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[str | Finished | Exception] = asyncio.Queue()

        def receive(event: str | Finished | Exception) -> None:
            if not isinstance(event, str):
                release()
            events.put_nowait(event)

        def send(event: str | Finished | Exception) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the server has stopped
                loop.call_soon_threadsafe(receive, event)

        length = self._settings.max_new_tokens
        job = Job(
            row,
            Group(parsed.model, parsed.temperature, parsed.top_p, parsed.seed),
            deadline,
            send,
            length=length if parsed.length is None else min(parsed.length, length),
            stop=parsed.stop,
            is_streamed=bool(parsed.stream),
        )
        self._worker.submit(job)
        return _Channel(events, job)

    async def _whole(self, request: Request, channel: _Channel, identity: dict[str, Any]) -> Response:
        finished = await channel.next(request)
        assert isinstance(finished, Finished)
        message = {"role": "assistant", "content": finished.text, "refusal": None}
        choice = {"index": 0, "message": message, "finish_reason": finished.reason, "logprobs": None}
        return JSONResponse({**identity, "object": "chat.completion", "choices": [choice], "usage": _usage(finished)})

    async def _pieces(
        self, request: Request, channel: _Channel, first: str | Finished, identity: dict[str, Any], has_usage: bool
    ) -> AsyncIterator[str]:
        def event(delta: dict[str, Any] | None, reason: str | None = None, usage: Any = None) -> str:
            choices = (
                [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}]
            )
            chunk = {**identity, "object": "chat.completion.chunk", "choices": choices}
            return _as_event({**chunk, "usage": usage} if has_usage else chunk)

        yield event({"role": "assistant", "content": ""})
        received = first
        try:
            while isinstance(received, str):
                yield event({"content": received})
                received = await channel.next(request)
        except RequestError as error:
            yield _as_event(error.body)
            return
        yield event({}, reason=received.reason)
        if has_usage:
            yield event(None, usage=_usage(received))
        yield "data: [DONE]\n\n"


def _usage(finished: Finished) -> dict[str, int]:
    prompt, new = finished.num_prompt_tokens, finished.num_new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}


def _as_event(body: dict[str, Any]) -> str:
    """An event of a stream. JSON in ASCII contains no line breaks."""
    return f"data: {json.dumps(body)}\n\n"
