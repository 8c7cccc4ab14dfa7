"""The checkpoints of a run: which is the last whole one, and what a resumed run needs to log the same values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import IntervalStrategy, SaveStrategy, get_last_checkpoint


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
        if checkpoint.is_dir() and not checkpoint.is_symlink() and not is_whole(checkpoint):
            shutil.rmtree(checkpoint)
    return get_last_checkpoint(str(folder))


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written completely."""
    try:
        return bool(_read_state(checkpoint)["global_step"] == int(checkpoint.name.rpartition("-")[2]))
    except (OSError, ValueError, TypeError, KeyError):
        return False


def final_state(checkpoint: str) -> TrainerState | None:
    """
    Whether the training ended at a checkpoint: by its last step, or because it was stopped. The trainer would train further
    steps when it resumes there.

    Args:
        checkpoint (`str`): a whole checkpoint.

    Returns:
        [`~transformers.TrainerState`]: the state in the checkpoint; `None` if the training goes on.
    """
    state = TrainerState(**_read_state(Path(checkpoint)))
    callbacks: Any = state.stateful_callbacks or {}
    control = callbacks.get("TrainerControl", {})
    was_stopped = isinstance(control, dict) and control.get("args", {}).get("should_training_stop", False)
    return state if was_stopped or state.global_step >= state.max_steps else None


def continuation(checkpoint: str) -> str:
    """
    Says where a run continues.

    Args:
        checkpoint (`str`): a whole checkpoint.

    Returns:
        `str`: a sentence with the name of the checkpoint, its step and the number of all steps.
    """
    state = _read_state(Path(checkpoint))
    return f"Continuing from {Path(checkpoint).name} (step {state['global_step']} of {state['max_steps']})."


class LogAtCheckpoints(TrainerCallback):
    """
    Logs at every checkpoint. The trainer logs means since the last log, which it does not save, so a run that resumes in
    between would log other values.
    """

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        # With the strategy "best", it is decided after the evaluation whether a checkpoint is written.
        may_save = control.should_save or (args.save_strategy == SaveStrategy.BEST and control.should_evaluate)
        if may_save and args.logging_strategy != IntervalStrategy.NO:
            control.should_log = True

    on_epoch_end = on_step_end


def _read_state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / _STATE).read_text(encoding="utf-8"))
    return state
