"""The checkpoints of a run: which is the last whole one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

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


def ended_early(checkpoint: str) -> TrainerState | None:
    """
    Whether the training was stopped at a checkpoint before its last step. The trainer would continue it when it resumes.

    Args:
        checkpoint (`str`): a whole checkpoint.

    Returns:
        [`~transformers.TrainerState`]: the state in the checkpoint; `None` if the training was not stopped there.
    """
    state = _read_state(Path(checkpoint))
    callbacks: Any = state.stateful_callbacks or {}
    control = callbacks.get("TrainerControl", {})
    was_stopped = isinstance(control, dict) and control.get("args", {}).get("should_training_stop", False)
    return state if was_stopped and state.global_step < state.max_steps else None


def _is_whole(checkpoint: Path) -> bool:
    try:
        return bool(_read_state(checkpoint).global_step == int(checkpoint.name.rpartition("-")[2]))
    except (OSError, ValueError, TypeError):
        return False


def _read_state(checkpoint: Path) -> TrainerState:
    return TrainerState(**json.loads((checkpoint / _STATE).read_text(encoding="utf-8")))
