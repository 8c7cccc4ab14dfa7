"""Ratios of two calls' times, taken in turns in one process, so that a slow spell of the machine meets both."""

import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers

import peft_listen


Call = Callable[[], object]


@dataclass
class Ratio:
    """
    One line of a table.

    Args:
        name: What is compared, as call / peer.
        values: The ratio of each turn.
        goal: What the median should not exceed; `None` for a line without a goal.
    """

    name: str
    values: list[float]
    goal: float | None = None

    def line(self) -> str:
        first, median, third = statistics.quantiles(self.values, n=4) if len(self.values) > 1 else self.values * 3
        cells = [self.name, f"{median:.3f}", f"{first:.3f} to {third:.3f}"]
        if self.goal is not None:
            verdict = "yes" if median <= self.goal else f"no, by {median / self.goal - 1:.0%}"
            cells += [f"≤ {self.goal}", verdict]
        return f"| {' | '.join(cells)} |"


def header(*, goals: bool) -> str:
    """The head of a table of such lines."""
    return (
        "| ratio | median | quartiles | goal | met |\n|---|---|---|---|---|"
        if goals
        else ("| ratio | median | quartiles |\n|---|---|---|")
    )


def time_in_turns(
    call: Call,
    peer: Call,
    *,
    repeats: int,
    warm_up: int,
    device: torch.device | str = "cpu",
    before: tuple[Call, Call] | None = None,
) -> list[tuple[float, float]]:
    """
    Times two calls in turns. Who goes first alternates, so that neither always finds the caches warm.

    Args:
        call: What is measured.
        peer: What it is compared to.
        repeats: Turns that count.
        warm_up: Turns before them that do not.
        device: Where both compute; CUDA is waited for.
        before: What is done before each turn of `call` and of `peer`, outside the measurement.

    Returns:
        Seconds of `call` and `peer` in each turn.
    """
    turns = []
    for turn in range(warm_up + repeats):
        for prepare in before or ():
            prepare()
        if turn % 2 == 0:
            seconds = (_seconds(call, device), _seconds(peer, device))
        else:
            peer_seconds = _seconds(peer, device)
            seconds = (_seconds(call, device), peer_seconds)
        if turn >= warm_up:
            turns.append(seconds)
    return turns


def _seconds(call: Call, device: torch.device | str) -> float:
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def describe_machine(device: torch.device | str) -> str:
    """Machine and versions, for the line above a table."""
    on_cuda = torch.device(device).type == "cuda"
    where = torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU"
    return (
        f"{where}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft-listen {peft_listen.__version__}"
    )
