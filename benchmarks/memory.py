"""Peak memory of this process: resident memory, or allocated memory on a CUDA device."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import torch


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory(device: torch.device | str = "cpu") -> None:
    """Starts the measurement of the peak again, on Linux or CUDA. Elsewhere it is that of the whole process."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")


def peak_memory(device: torch.device | str = "cpu") -> float:
    """Peak memory in MiB since the last [`reset_peak_memory`]."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if STATUS.exists():  # on Linux, `getrusage` includes the memory of the parent process
        return _from_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)


def used_memory(device: torch.device | str = "cpu") -> float:
    """Memory in use now, in MiB; outside of Linux and CUDA, the peak so far."""
    if torch.device(device).type == "cuda":
        return torch.cuda.memory_allocated() / 2**20
    return _from_status("VmRSS") if STATUS.exists() else peak_memory()


def _from_status(name: str) -> float:
    kilobytes = re.search(rf"{name}:\s*(\d+)", STATUS.read_text(encoding="ascii"))
    assert kilobytes is not None
    return int(kilobytes[1]) / 1024
