"""Rejects configurations of another model type."""

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
