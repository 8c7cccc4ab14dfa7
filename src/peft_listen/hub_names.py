"""Which models others can load by their name: those on the Hub, and not those in a folder of this machine."""

from __future__ import annotations

import os
import warnings
from typing import Any

from huggingface_hub.utils import HFValidationError, validate_repo_id


def is_hub_name(name: str | None) -> bool:
    """Whether a name can be that of a repository on the Hub, and is not the path of a local file or folder."""
    return bool(name) and not os.path.exists(str(name)) and is_repository_name(name)


def is_repository_name(name: Any) -> bool:
    """Whether a value is a text of the form of a repository's name on the Hub."""
    if not isinstance(name, str):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def base_names(base: Any) -> list[str]:
    """
    Returns the names on the Hub under which a base model can be found: its own, or, for a local folder, those of the
    published parts that it refers to.

    Args:
        base (`nn.Module`): the base model.
    """
    names = [base.__dict__.get("name_or_path")]
    if not is_hub_name(names[0]):
        names = [reference.get("name_or_path") for reference in getattr(base, "frozen_references", {}).values()]
    return [name for name in names if is_hub_name(name)]


def warn_of_local_base(name: str | None, is_audio_model: bool) -> None:
    """
    Warns that others cannot load an adapter that is uploaded, unless its base model has a name on the Hub.

    Args:
        name (`str`, *optional*): the adapter's `base_model_name_or_path`.
        is_audio_model (`bool`): whether the base model is an audio model of this package.
    """
    if is_hub_name(name):
        return
    found = f"names the local folder {name!r} as its base model" if name else "does not name its base model"
    remedy = (
        "Upload all parts together with `peft_listen.publish(model, processor, repo_id)`"
        if is_audio_model
        else "Upload the base model too, and set `model.peft_config[adapter_name].base_model_name_or_path` to its name"
    )
    warnings.warn(
        f"The adapter that is pushed {found}, so nobody else can load it. {remedy}.", UserWarning, stacklevel=3
    )
