"""Runs functions in processes of their own that are killed at a chosen moment, as by the system."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any


# Audit events of Python at which a file is about to be changed.
_CHANGES = frozenset(
    {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "shutil.rmtree", "shutil.move"}
)


def killed_after(seconds: float, action: Callable[[], Any]) -> bool:
    """
    Runs an action in a process that is killed after some time.

    Args:
        seconds (`float`): when.
        action (`Callable`): what the process does; it fails if the action raises or returns an exit code other than 0.

    Returns:
        `bool`: whether it ended before that.
    """
    return _ended(action, seconds=seconds)


def killed_at_change(number: int, folder: Path, action: Callable[[], Any]) -> bool:
    """
    Runs an action in a process that is killed at its n-th change of a folder, before the change is made.

    Args:
        number (`int`): from 1.
        folder (`pathlib.Path`): the folder; files that libraries write without Python's functions are not counted.
        action (`Callable`): what the process does; it fails if the action raises or returns an exit code other than 0.

    Returns:
        `bool`: whether it ended before that.
    """
    count = 0

    def is_time(event: str, arguments: tuple[Any, ...]) -> bool:
        nonlocal count
        if not _changes(folder, event, arguments):  # among them is the event of the kill
            return False
        count += 1
        return count == number

    return _ended(action, is_time)


def num_changes(folder: Path, action: Callable[[], Any]) -> int:
    """Runs an action in a process of its own, and counts its changes of a folder."""
    with tempfile.NamedTemporaryFile() as file:

        def write(event: str, arguments: tuple[Any, ...]) -> bool:
            if _changes(folder, event, arguments):
                os.write(descriptor, b".")
            return False

        descriptor = file.fileno()
        assert _ended(action, write)
        return os.path.getsize(file.name)


def run_forked(action: Callable[[], Any]) -> tuple[int, str]:
    """
    Runs an action in a process of its own.

    Returns:
        `tuple`: its exit code, 70 if the action raised, negative if it was killed; and what it printed.
    """
    with tempfile.TemporaryFile() as output:
        process = _start(action, output.fileno(), None)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        output.seek(0)
        return code, output.read().decode(errors="replace")


def _ended(
    action: Callable[[], Any],
    is_time: Callable[[str, tuple[Any, ...]], bool] | None = None,
    seconds: float | None = None,
) -> bool:
    with tempfile.TemporaryFile() as output:
        process = _start(action, output.fileno(), is_time)
        status = None
        deadline = None if seconds is None else time.monotonic() + seconds
        while deadline is not None and status is None:
            found, code = os.waitpid(process, os.WNOHANG)
            if found:
                status = code
            elif time.monotonic() >= deadline:
                os.kill(process, signal.SIGKILL)
                deadline = None
            else:
                time.sleep(0.002)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1] if status is None else status)
        output.seek(0)
        assert code in (0, -signal.SIGKILL), output.read().decode(errors="replace")
    return code == 0


def _start(action: Callable[[], Any], output: int, is_time: Callable[[str, tuple[Any, ...]], bool] | None) -> int:
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        return process
    code = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        # What pytest has put in their place would write into the files of the test.
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        if is_time is not None:

            def hook(event: str, arguments: tuple[Any, ...]) -> None:
                if event in _CHANGES and is_time(event, arguments):
                    os.kill(os.getpid(), signal.SIGKILL)

            sys.addaudithook(hook)
        result = action()
        code = result if isinstance(result, int) else 0
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _changes(folder: Path, event: str, arguments: tuple[Any, ...]) -> bool:
    """Whether an audit event is about to change a file in a folder."""
    if event == "open":
        path, mode, flags = arguments
        writes = bool((flags or 0) & (os.O_WRONLY | os.O_RDWR)) or (isinstance(mode, str) and mode[:1] in "wax")
        return writes and isinstance(path, (str, bytes, os.PathLike)) and str(folder) in os.fsdecode(path)
    return event in _CHANGES and str(folder) in str(arguments)
