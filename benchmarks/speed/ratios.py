"""Times alternating calls in one process, so variations of the machine's speed affect all, and reports ratios."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

import peft_listen


Call = Callable[[], object]

# CPU time is that of all threads of the process. It does not count the time in which other programs run.
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass
class Ratio:
    """
    One row of a table.

    Args:
        name (`str`): the compared calls, as call / peer.
        values (`list[float]`): the ratio of each turn; none if it could not be measured.
    """

    name: str
    values: list[float]

    def line(self) -> str:
        """The row in Markdown: median and quartiles."""
        if not self.values:
            return f"| {self.name} | not measured | |"
        first, median, third = quartiles(self.values)
        return f"| {self.name} | {median:.3f} | {first:.3f} to {third:.3f} |"


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median and third quartile of at least one value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    first, median, third = statistics.quantiles(values, n=4)
    # Those of two values would lie outside of them.
    return max(first, min(values)), median, min(third, max(values))


def header() -> str:
    """The header of a table of ratios."""
    return "| ratio | median | quartiles |\n|---|---|---|"


def ratio_table(rows: Sequence[Ratio]) -> str:
    """A table of ratios in Markdown."""
    return "\n".join([header(), *(row.line() for row in rows)])


def memory_ratio(name: str, pairs: Sequence[tuple[float, float]]) -> Ratio:
    """
    The ratio of peaks of memory. Pairs in which one of the two did not exceed what it is measured from give no ratio.

    Args:
        name (`str`): the compared calls, as call / peer.
        pairs (`Sequence[tuple[float, float]]`): bytes of `call` and of `peer`, above those of the base model.
    """
    return Ratio(name, [call / peer for call, peer in pairs if call > 0 and peer > 0])


def time_in_turns(
    *calls: Call,
    repeats: int,
    warm_up: int,
    device: torch.device | str = "cpu",
    clock: str = "wall",
    before: Sequence[Call] = (),
) -> list[tuple[float, ...]]:
    """
    Times alternating calls. The order is reversed in every turn, so no call always runs with warm caches.

    Args:
        calls (`Callable`): measured calls, for a ratio the call and its peer.
        repeats (`int`): number of measured turns.
        warm_up (`int`): number of turns before them that are not measured.
        device (`torch.device` or `str`, defaults to `"cpu"`): device of all calls; CUDA is synchronized.
        clock (`str`, defaults to `"wall"`): one of `CLOCKS`.
        before (`Sequence[Callable]`): preparations, run before each turn and not measured.

    Returns:
        `list[tuple[float, ...]]`: seconds of each call in each turn.
    """
    turns = []
    for turn in range(warm_up + repeats):
        for prepare in before:
            prepare()
        order = range(len(calls)) if turn % 2 == 0 else reversed(range(len(calls)))
        seconds = {index: timed(calls[index], device, clock) for index in order}
        if turn >= warm_up:
            turns.append(tuple(seconds[index] for index in range(len(calls))))
    return turns


def ratio_in_turns(name: str, call: Call, peer: Call, **options: Any) -> Ratio:
    """The ratio of the times of two calls; the options are those of [`time_in_turns`]."""
    return Ratio(name, [seconds / peer_seconds for seconds, peer_seconds in time_in_turns(call, peer, **options)])


def timed(call: Call, device: torch.device | str, clock: str = "wall") -> float:
    """Seconds that one call takes; CUDA is synchronized before and after it."""
    read = CLOCKS[clock]
    _synchronize(device)
    start = read()
    call()
    _synchronize(device)
    return read() - start


def _synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def describe_machine(device: torch.device | str) -> str:
    """Describes machine and versions, for the line above a table."""
    on_cuda = torch.device(device).type == "cuda"
    where = torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU"
    threads = torch.get_num_threads()
    return (
        f"{where}, {threads} {'thread' if threads == 1 else 'threads'}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft-listen {peft_listen.__version__}"
    )
