"""Runs `peft-listen serve` in a thread."""

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
def running_command(arguments: Sequence[str]) -> Iterator[str]:
    """The `base_url` of the server that a command runs on a free port. At the end the exit code must be 0."""
    servers: list[Any] = []
    started = threading.Event()

    class Recorded(serving.Server):
        def __init__(self, models: Any, sock: Any, settings: Any, on_start: Callable[[], None]) -> None:
            def announce() -> None:
                on_start()
                started.set()

            super().__init__(models, sock, settings, announce)
            self.url = serving.url_of(sock)
            servers.append(self)

    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main([*arguments, "--port", "0"])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "Server", Recorded)
        thread.start()
        while not started.is_set():
            assert thread.is_alive(), f"the command has ended with {codes}"
            time.sleep(0.01)
    try:
        yield servers[0].url
    finally:
        servers[0].stop()
        thread.join(60)
    assert codes == [0]
