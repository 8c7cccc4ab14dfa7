"""Configurations take those of their own model only."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig


def check_model_type(config_class: type[PreTrainedConfig], config_dict: dict[str, Any]) -> None:
    """
    Checks that a saved configuration is of the model that is asked for. transformers goes on with a warning, and builds
    a model of the default sizes with random weights.

    Args:
        config_class (`type[PreTrainedConfig]`): The configuration that is to be made.
        config_dict (`dict`): What was saved.

    Raises:
        `ValueError`: if it is another model's; the message names both.
    """
    found = config_dict.get("model_type", config_class.model_type)
    if found != config_class.model_type:
        raise ValueError(
            f"This is the checkpoint of a {found!r} model, but {config_class.__name__} needs one of a "
            f"{config_class.model_type!r} model. Load it with the Auto classes of transformers, or name another folder."
        )
