"""The checkpoints of a run: which is the last whole one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from transformers.trainer_callback import TrainerState
from transformers.trainer_utils import get_last_checkpoint


# The trainer writes this file last.
_STATE = "trainer_state.json"


def last_whole_checkpoint(folder: Path) -> str | None:
    """
    Finds the last checkpoint that was written completely, and removes those that a killed process has left half-written.

    Args:
        folder (`pathlib.Path`): the folder of the checkpoints.

    Returns:
        `str`: its path; `None` if there is none.
    """
    if not folder.is_dir():
        return None
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.is_dir() and not checkpoint.is_symlink() and not _is_whole(checkpoint):
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(folder))


def _is_whole(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
        return bool(TrainerState(**state).global_step == int(checkpoint.name.rpartition("-")[2]))
    except (OSError, ValueError, TypeError):
        return False
