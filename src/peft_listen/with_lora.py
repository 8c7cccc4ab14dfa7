"""
LiSTEN and LoRA on one model. LiSTEN changes the input of the decoder and LoRA its layers, so both can be active at once.

PEFT's `get_peft_model(..., mixed=True)` is for adapters of layers only, and its models cannot be saved, so LoRA is injected
into the base model of a `PeftModel` instead, which saves both.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftModel, inject_adapter_in_model
from peft.utils import CONFIG_NAME

from .lora_beside import LORA_NAME, activate_both, load_lora_beside
from .tuners.listen import ListenConfig


def add_lora(model: PeftModel, config: LoraConfig) -> PeftModel:
    """
    Adds LoRA to a model that has a LiSTEN adapter. Both are active and trained, and `model.save_pretrained` saves both. The new
    adapter has the name `lora`, by which everything that loads both finds it.

    Args:
        model (`PeftModel`): from `get_peft_model(base, ListenConfig(...))`; changed in place.
        config ([`~peft.LoraConfig`]): `target_modules` should name modules of the language model, not those of encoders.

    Returns:
        `PeftModel`: the model.

    Raises:
        ValueError: if the active adapter of the model is not LiSTEN, the model has an adapter of the name `lora`, or `config`
            has `modules_to_save`, which the LiSTEN adapter saves.
        TypeError: if `config` is not a [`~peft.LoraConfig`].

    Example:

    ```python
    model = get_peft_model(base, ListenConfig(pool_size=64, modules_to_save=["multi_modal_projector"]))
    model = add_lora(model, LoraConfig(target_modules=r".*language_model.*\\.(q|v)_proj"))
    model.save_pretrained("my-adapters")
    model = load_with_lora(base, "my-adapters")
    ```
    """
    if not isinstance(config, LoraConfig):
        raise TypeError(f"`config` must be a LoraConfig, got a {type(config).__name__}.")
    names = model.active_adapters if isinstance(model, PeftModel) else []
    if len(names) != 1 or not isinstance(model.peft_config[names[0]], ListenConfig):
        raise ValueError(
            f"The model, a {type(model).__name__}, has no active LiSTEN adapter. Create one first: "
            "`get_peft_model(model, ListenConfig())`."
        )
    if LORA_NAME in model.peft_config:
        raise ValueError(f"The model has an adapter {LORA_NAME!r} already.")
    if config.modules_to_save:
        raise ValueError(
            f"`modules_to_save` is {config.modules_to_save} in the LoraConfig. Set it in the ListenConfig instead, whose adapter "
            "saves these modules."
        )
    inject_adapter_in_model(config, model.get_base_model(), adapter_name=LORA_NAME)
    activate_both(model, names[0])
    return model


def load_with_lora(base: Any, folder: str | os.PathLike[str], is_trainable: bool = False) -> PeftModel:
    """
    Loads a LiSTEN adapter and a LoRA adapter that were saved together, and activates both.

    Args:
        base (`PreTrainedModel`): the base model; changed in place.
        folder (`str` or `os.PathLike`): the folder that `save_pretrained` wrote, on this machine. It holds both adapters, in
            itself or in its subfolders.
        is_trainable (`bool`, defaults to `False`): whether the training of both is continued.

    Returns:
        `PeftModel`: in evaluation mode, unless `is_trainable`. The LiSTEN adapter has the name that it was saved with.

    Raises:
        FileNotFoundError: if the folder does not hold one LiSTEN and one LoRA adapter; the message lists what it holds.
        OSError, ValueError: if one of them cannot be loaded.
    """
    adapters = _find_adapters(Path(folder))
    listen = [name for name, kind in adapters.items() if kind == "LISTEN"]
    if len(listen) != 1 or adapters.get(LORA_NAME) != "LORA":
        found = ", ".join(f"{name or 'the folder itself'} ({kind})" for name, kind in adapters.items()) or "none"
        raise FileNotFoundError(
            f"{folder} must hold one LiSTEN adapter, in itself or in a subfolder, and a LoRA adapter in the subfolder "
            f"{LORA_NAME!r}; found: {found}. Pass the folder that `save_pretrained` wrote, or load a single adapter with "
            "`PeftModel.from_pretrained`."
        )
    name = listen[0] or "default"
    model: Any = PeftModel.from_pretrained(
        base, str(Path(folder, listen[0])), adapter_name=name, is_trainable=is_trainable
    )
    load_lora_beside(model, folder, name, is_trainable=is_trainable)
    return model


def _find_adapters(folder: Path) -> dict[str, str]:
    """The kinds of the adapters of a folder by the names of their subfolders, `""` for the folder itself."""
    found = {}
    for path in sorted([folder, *(folder.iterdir() if folder.is_dir() else ())]):
        file = path / CONFIG_NAME
        if file.is_file():
            try:
                content = json.loads(file.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ValueError(f"{file} is not JSON: {error}") from error
            kind = content.get("peft_type") if isinstance(content, dict) else None
            found["" if path == folder else path.name] = str(kind)
    return found
