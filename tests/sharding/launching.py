"""Starts the two processes of a test, which talk through gloo."""

from __future__ import annotations

import multiprocessing
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.pages import ROOT


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def run_forked(
    target: Callable[..., None], arguments: Sequence[Sequence[Any]], timeout: int = 120
) -> list[int | None]:
    """
    Runs a function in copies of this process, one for each rank, which need not import anything again.

    Args:
        target (`Callable`): called with the rank, a free port and the arguments of the rank.
        arguments (`Sequence[Sequence]`): the arguments of each rank.
        timeout (`int`): seconds after which a process is killed.

    Returns:
        `list[int]`: the exit code of each process.
    """
    port, context = free_port(), multiprocessing.get_context("fork")
    processes = [context.Process(target=target, args=(rank, port, *each)) for rank, each in enumerate(arguments)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=timeout)
        process.kill()
        process.join()
    return [process.exitcode for process in processes]


def run_two_processes(
    module: str, arguments: Sequence[str], folder: Path, variables: Mapping[str, str] | None = None, timeout: int = 300
) -> list[str]:
    """
    Runs a module of the tests in two processes.

    Their exit codes are not checked, since gloo sometimes aborts when a process ends: a test checks what they have written.

    Args:
        module (`str`): dotted name of the module.
        arguments (`Sequence[str]`): its arguments.
        folder (`Path`): receives the output of each process.
        variables (`Mapping[str, str]`, *optional*): further environment variables.
        timeout (`int`): seconds after which both processes are killed.

    Returns:
        `list[str]`: the output of each process.
    """
    paths = [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    environment |= dict(variables or {})
    processes, outputs = [], [folder / f"output{rank}" for rank in (0, 1)]
    for rank, output in enumerate(outputs):
        with output.open("w") as file:
            command = [sys.executable, "-m", module, *arguments]
            own = {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=own, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT))
    try:
        for process in processes:
            process.wait(timeout=timeout)
    except subprocess.TimeoutExpired:
        pass  # a process that waits for the other one; what they have printed is shown
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [output.read_text() for output in outputs]
