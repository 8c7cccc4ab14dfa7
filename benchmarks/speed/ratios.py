"""Times two alternating calls in one process, so variations of the machine's speed affect both, and reports ratios."""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import transformers

import peft_listen


Call = Callable[[], object]


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
        first, median, third = statistics.quantiles(self.values, n=4) if len(self.values) > 1 else self.values * 3
        return f"| {self.name} | {median:.3f} | {first:.3f} to {third:.3f} |"


def header() -> str:
    """The header of a table of ratios."""
    return "| ratio | median | quartiles |\n|---|---|---|"


def memory_ratio(name: str, pairs: Sequence[tuple[float, float]]) -> Ratio:
    """
    The ratio of peaks of memory. Pairs in which one of the two did not exceed what it is measured from give no ratio.

    Args:
        name (`str`): the compared calls, as call / peer.
        pairs (`Sequence[tuple[float, float]]`): bytes of `call` and of `peer`, above those of the base model.
    """
    return Ratio(name, [call / peer for call, peer in pairs if call > 0 and peer > 0])


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
    Times two alternating calls. The order is reversed in every turn, so neither call always runs with warm caches.

    Args:
        call (`Callable`): measured call.
        peer (`Callable`): call to compare it with.
        repeats (`int`): number of measured turns.
        warm_up (`int`): number of turns before them that are not measured.
        device (`torch.device` or `str`, defaults to `"cpu"`): device of both calls; CUDA is synchronized.
        before (`tuple[Callable, Callable]`, *optional*): preparations for `call` and `peer`, run before each turn and not
            measured.

    Returns:
        `list[tuple[float, float]]`: seconds of `call` and of `peer` in each turn.
    """
    turns = []
    for turn in range(warm_up + repeats):
        for prepare in before or ():
            prepare()
        if turn % 2 == 0:
            seconds = (timed(call, device), timed(peer, device))
        else:
            peer_seconds = timed(peer, device)
            seconds = (timed(call, device), peer_seconds)
        if turn >= warm_up:
            turns.append(seconds)
    return turns


def timed(call: Call, device: torch.device | str) -> float:
    """Seconds that one call takes; CUDA is synchronized before and after it."""
    _synchronize(device)
    start = time.perf_counter()
    call()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def describe_machine(device: torch.device | str) -> str:
    """Describes machine and versions, for the line above a table."""
    on_cuda = torch.device(device).type == "cuda"
    where = torch.cuda.get_device_name() if on_cuda else f"{platform.machine()} CPU"
    return (
        f"{where}, {torch.get_num_threads()} threads; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft-listen {peft_listen.__version__}"
    )
