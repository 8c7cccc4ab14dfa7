"""Peak resident memory of this process."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path


STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak_memory() -> None:
    """Starts the measurement of the peak again, on Linux. Elsewhere it is that of the whole process."""
    if CLEAR.exists():
        CLEAR.write_text("5", encoding="ascii")


def peak_memory() -> float:
    """Peak resident memory in MB."""
    if STATUS.exists():  # on Linux, `getrusage` includes the memory of the parent process
        kilobytes = re.search(r"VmHWM:\s*(\d+)", STATUS.read_text(encoding="ascii"))
        assert kilobytes is not None
        return int(kilobytes[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024**2 if sys.platform == "darwin" else 1024)
