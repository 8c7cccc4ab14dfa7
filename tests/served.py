"""Servers and the commands that run them, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from peft_listen import serving
from peft_listen_cli import main


@contextmanager
def running_server(server: serving.AppServer, started: threading.Event) -> Iterator[None]:
    """Runs a server, whose `on_start` sets the event, in a thread."""
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert started.wait(30)
        yield
    finally:
        server.stop()
        thread.join(30)
        assert not thread.is_alive()


@contextmanager
def running_command(arguments: Sequence[str]) -> Iterator[str]:
    """The address that a command prints, of the server that it runs on a free port. At the end the exit code must be 0."""
    servers: list[tuple[serving.AppServer, str]] = []
    started = threading.Event()
    make = serving.AppServer.__init__
    address_of = serving.url_of if arguments[0] == "serve" else serving.address_of

    def recorded(self: serving.AppServer, app: Any, sock: Any, on_start: Callable[[], None], **settings: Any) -> None:
        def announce() -> None:
            on_start()
            started.set()

        make(self, app, sock, announce, **settings)
        servers.append((self, address_of(sock)))

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main([*arguments, "--port", "0"])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving.AppServer, "__init__", recorded)
        thread.start()
        while not started.is_set():
            assert thread.is_alive(), f"the command has ended with {codes}"
            time.sleep(0.01)
    ((server, url),) = servers
    try:
        yield url
    finally:
        server.stop()
        thread.join(60)
    assert codes == [0]
