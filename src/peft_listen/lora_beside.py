"""
A LoRA adapter that was trained together with a LiSTEN adapter. LiSTEN changes the input of the decoder and LoRA its layers, so
both are active at once. PEFT saves adapters in subfolders of their names, and the LoRA adapter is in that of the other one.
"""

from __future__ import annotations

import os
from typing import Any

from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from transformers.utils.peft_utils import find_adapter_config_file


LORA_NAME = "lora"


def has_lora_beside(path: str | os.PathLike[str], **hub_arguments: Any) -> bool:
    """
    Whether an adapter has a LoRA adapter in its subfolder `lora`.

    Args:
        path (`str` or `os.PathLike`): folder or Hub name of the adapter.
        hub_arguments (`Any`): `revision`, `token` and others, with which the adapter is loaded.
    """
    return find_adapter_config_file(os.fspath(path), **_arguments_of_lora(hub_arguments)) is not None


def load_lora_beside(
    model: Any,
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    is_trainable: bool = False,
    **hub_arguments: Any,
) -> None:
    """
    Loads the LoRA adapter in the subfolder `lora` of an adapter, if there is one, and leaves both active.

    Args:
        model (`PeftModel` or `PreTrainedModel`): model that the adapter is loaded into. Changed in place.
        path (`str` or `os.PathLike`): folder or Hub name of the adapter.
        adapter_name (`str`, defaults to `"default"`): name of the adapter in the model.
        is_trainable (`bool`, defaults to `False`): whether both are trained further. If not, the model is in evaluation mode.
        hub_arguments (`Any`): `revision`, `token` and others, with which the adapter was loaded.

    Raises:
        OSError: if the LoRA adapter cannot be loaded.
    """
    if not has_lora_beside(path, **hub_arguments):
        return
    name, arguments = os.fspath(path), _arguments_of_lora(hub_arguments)
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    base.load_adapter(name, LORA_NAME, adapter_kwargs=arguments)
    activate_both(model, adapter_name, is_trainable)
    if not is_trainable:
        model.eval()


def activate_both(model: Any, adapter_name: str, is_trainable: bool = True) -> None:
    """
    Makes the LiSTEN adapter and the LoRA adapter of a model active after the second was added, which has deactivated the modules
    that are trained with the first.

    Args:
        model (`PeftModel` or `PreTrainedModel`): changed in place.
        adapter_name (`str`): name of the LiSTEN adapter.
        is_trainable (`bool`, defaults to `True`): whether LoRA is trained; if not, nothing of the model is.
    """
    if isinstance(model, PeftModel):
        model.set_adapter(adapter_name)  # of the prompts and these modules; LoRA stays active
    else:
        for module in model.modules():
            if isinstance(module, ModulesToSaveWrapper):
                module.set_adapter(adapter_name)
    for name, parameter in model.named_parameters():
        if f".{LORA_NAME}." in name and "lora_" in name:
            parameter.requires_grad_(is_trainable)
        elif not is_trainable:
            parameter.requires_grad_(False)


def _arguments_of_lora(hub_arguments: dict[str, Any]) -> dict[str, Any]:
    return {**hub_arguments, "subfolder": "/".join(filter(None, (hub_arguments.get("subfolder"), LORA_NAME)))}
