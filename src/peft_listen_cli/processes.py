"""The processes that `accelerate launch` or `torchrun` has started, or this one alone."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from accelerate import PartialState

# Processes wait for each other at the end of work that is shared among them, whose parts differ in length.
_TIMEOUT = datetime.timedelta(days=1)


def start_processes() -> PartialState:
    """
    Connects this process with the others.

    Returns:
        [`~accelerate.PartialState`]: the number of this process, and its device.
    """
    import torch
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    # Without `cpu`, PartialState takes processes on CPUs for independent ones.
    on_cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=on_cpu, timeout=_TIMEOUT)
