"""Rejects configurations of another model type, and folders without a configuration."""

import os
from typing import Any

from transformers.configuration_utils import PreTrainedConfig


def check_model_type(config_class: type[PreTrainedConfig], config_dict: dict[str, Any]) -> None:
    """
    Checks that a saved configuration has the model type of `config_class`. transformers only warns about another type,
    and builds a model of default size with random weights.

    Args:
        config_class (`type[PreTrainedConfig]`): Class of the configuration to create.
        config_dict (`dict`): The saved configuration.

    Raises:
        `ValueError`: if the model types differ; the message names both.
    """
    found = config_dict.get("model_type", config_class.model_type)
    if found != config_class.model_type:
        raise ValueError(
            f"This is the checkpoint of a {found!r} model, but {config_class.__name__} needs one of a "
            f"{config_class.model_type!r} model. Load it with the Auto classes of transformers, or pass another folder."
        )


def check_found(path: str | os.PathLike[str], config_dict: dict[str, Any]) -> None:
    """
    Checks that a folder has a configuration. transformers takes a missing `config.json` for an empty one, and builds a
    model of default size with random weights.

    Args:
        path (`str` or `os.PathLike`): Folder or Hub id.
        config_dict (`dict`): The configuration that was read.

    Raises:
        `OSError`: if it is empty; the message names the folder.
    """
    if not config_dict:
        raise OSError(
            f"{os.fspath(path)} has no `config.json`. It does not hold a model, or saving the model was interrupted. Save "
            "the model again, or pass another folder."
        )
