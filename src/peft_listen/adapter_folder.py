"""Saves the adapters of a model that is published, with the name of the base model that others load."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from peft.utils import CONFIG_NAME

from .hub_names import is_hub_name


def hub_base_name(base: Any, include: Collection[str]) -> str:
    """
    The name on the Hub of a base model of transformers, which an adapter that is published alone names.

    Args:
        base (`PreTrainedModel`): the base model.
        include (`Collection[str]`): parts whose weights are to be uploaded, which has to be empty.

    Returns:
        `str`: the name.

    Raises:
        ValueError: if it was loaded from a folder, or parts of it are to be uploaded.
    """
    kind, name = type(base).__name__, base.__dict__.get("name_or_path")
    if include:
        raise ValueError(
            f"`include` is for the parts of an AudioListenForCausalLM, and the base model is a {kind}. Leave it out: the adapter "
            "is published without its base model."
        )
    if not is_hub_name(name):
        raise ValueError(
            f"The adapter would name {name!r} as its base model, which others cannot load. Load the {kind} by its name on the "
            "Hub, and the adapter into it, or upload the base model first."
        )
    return str(name)


def save_adapters(model: Any, names: Sequence[str], folder: Path, base_name: str, compared_base: str) -> None:
    """
    Saves the first adapter in a folder, and a second one in the subfolder of its name.

    Args:
        model (`PeftModel`): the model.
        names (`Sequence[str]`): names of the adapters.
        folder (`pathlib.Path`): the folder.
        base_name (`str`): what the adapters name as their base model.
        compared_base (`str`): folder or Hub name of the base model, with whose vocabulary PEFT compares that of the model.
    """
    configs = [model.peft_config[name] for name in names]
    before = [config.base_model_name_or_path for config in configs]
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        for config in configs:
            config.base_model_name_or_path = compared_base
        try:
            model.save_pretrained(temporary)
        finally:
            for config, name_or_path in zip(configs, before, strict=True):
                config.base_model_name_or_path = name_or_path
        for name in names:
            # PEFT saves adapters with another name than "default" in a folder of that name.
            source = Path(temporary) if name == "default" else Path(temporary, name)
            target = folder if name == names[0] else folder / name
            target.mkdir(exist_ok=True)
            content = json.loads((source / CONFIG_NAME).read_text(encoding="utf-8"))
            content |= {"base_model_name_or_path": base_name, "revision": None}
            (source / CONFIG_NAME).write_text(json.dumps(content, indent=2, sort_keys=True), encoding="utf-8")
            for path in source.glob("adapter_*"):
                shutil.move(path, target / path.name)
