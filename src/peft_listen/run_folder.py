"""The output folder of a training run, in which other commands find what belongs to the trained model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .settings_record import SettingsRecord


MODEL_NAME = "model"
SELECTIONS_NAME = "selections.safetensors"
SETTINGS_NAME = "settings.json"
_ADAPTER_CONFIG_NAME = "adapter_config.json"


def find_run(model: str) -> Path | None:
    """
    The output folder of the training run that has written a model.

    Args:
        model (`str`): folder or Hub name of the model.

    Returns:
        `pathlib.Path`, *optional*: the folder above that of the model; `None` if `peft-listen train` has not written it.
    """
    folder = Path(model).resolve()
    # The name of a repository on the Hub, such as `me/model`, is not a folder.
    is_of_run = folder.name == MODEL_NAME and folder.is_dir() and _is_run(folder.parent)
    return folder.parent if is_of_run else None


def display_name(model: str) -> str:
    """
    What people call a model.

    Args:
        model (`str`): folder or Hub name of the model, or a file with its selections.

    Returns:
        `str`: the name of its folder without the parents, or of the folder of the run that has written it, since the models
        of all runs are in a folder `model`; the name as it is if there is no such folder. A file `selections.safetensors` in
        the folder of a run or of an adapter has the name of the run or the adapter, another file its own.
    """
    if not os.path.exists(model):
        return model
    path = Path(model).resolve()
    if path.name == SELECTIONS_NAME and path.is_file():
        if _is_run(path.parent):
            return path.parent.name
        if (path.parent / _ADAPTER_CONFIG_NAME).is_file():
            return display_name(str(path.parent))
    run = find_run(model)
    return os.path.basename(os.path.abspath(model)) if run is None else run.name


def read_run_settings(model: str) -> dict[str, Any]:
    """
    The settings of the training run that has written a model.

    Args:
        model (`str`): folder or Hub name of the model.

    Returns:
        `dict[str, Any]`: its options by name; empty if there is no such run, or its record cannot be read.
    """
    run = find_run(model)
    try:
        return {} if run is None else SettingsRecord(run / SETTINGS_NAME).read() or {}
    except (OSError, ValueError):
        return {}


def _is_run(folder: Path) -> bool:
    return (folder / SETTINGS_NAME).is_file()
