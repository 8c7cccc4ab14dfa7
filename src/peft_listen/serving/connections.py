"""Connections of a server: how many there are, how long each may last, and whether its requests are logged."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol


# Seconds from the beginning of a connection, or the end of an answer, within which a request's headers must have arrived.
HEADER_SECONDS = 10.0
# Seconds beyond the time of a request, whose end the application answers, after which its connection is closed.
GRACE_SECONDS = 10.0


class LimitedProtocol(H11Protocol):
    """
    uvicorn's protocol, with limits that it lacks. It closes idle connections after an answer only, so without these limits
    clients could keep any number of connections by sending no headers, or one byte of them from time to time, or by not
    reading their answers.

    Args:
        max_connections (`int`): Number of connections beyond which new ones are closed at once.
        request_seconds (`float`): Seconds from the headers of a request to the end of its answer.
        args, kwargs: Those of uvicorn.
    """

    def __init__(self, *args: Any, max_connections: int, request_seconds: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._max_connections = max_connections
        self._request_seconds = request_seconds
        self._end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            transport.abort()
        else:
            self._end_after(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is not None:
            self._end.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        cycle = self.cycle
        super().handle_events()
        if self.cycle is not cycle:  # the headers of a request have arrived
            self._end_after(self._request_seconds)

    def on_response_complete(self) -> None:
        self._end_after(HEADER_SECONDS)
        # It may begin the next request, which the client has sent already.
        super().on_response_complete()

    def _end_after(self, seconds: float) -> None:
        if self._end is not None:
            self._end.cancel()
        # `close` would wait until the client has read what was sent to it.
        self._end = self.loop.call_later(seconds, self.transport.abort)


class QuietProtocol(H11Protocol):
    """
    uvicorn's protocol, which logs no requests. uvicorn's own setting, `access_log`, changes the logger of all servers of the
    process.

    Args:
        args, kwargs: Those of uvicorn.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False
