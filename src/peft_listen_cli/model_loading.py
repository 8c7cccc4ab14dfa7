"""Loads the model that is given on the command line."""

import os

from peft import PeftConfig
from peft.utils import CONFIG_NAME
from transformers import Pipeline, pipeline

from peft_listen.registration import register


def load_pipeline(model: str) -> Pipeline:
    """
    Loads the audio-text-to-text pipeline of a model, or of an adapter and its base model.

    Args:
        model (`str`): Folder or Hub name.

    Raises:
        OSError: if the model cannot be loaded. For an adapter, the message names its base model.
    """
    register()
    try:
        return pipeline("audio-text-to-text", model=model)  # type: ignore[call-overload]
    except OSError as error:
        raise OSError(f"The model {model!r} cannot be loaded. {_base_of(model)}{error}") from error


def _base_of(model: str) -> str:
    """A sentence about the adapter's base model, for the error message; empty if `model` is not the folder of an
    adapter."""
    if not os.path.isfile(os.path.join(model, CONFIG_NAME)):
        return ""
    base = PeftConfig.from_pretrained(model).base_model_name_or_path
    if base:
        return f"It is an adapter on {base!r}, which must be found too. "
    return (
        "It is an adapter that does not name its base model. Save the base model, and set `base_model_name_or_path` in "
        "the adapter's adapter_config.json to its folder or Hub name. "
    )
