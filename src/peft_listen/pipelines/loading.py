"""Loads a pipeline by the name of a model or adapter alone."""

import json
import os
from typing import Any

import torch
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG_NAME
from transformers import (
    MODEL_FOR_MULTIMODAL_LM_MAPPING,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoProcessor,
    AutoTokenizer,
    Pipeline,
    pipeline,
)
from transformers.utils import CONFIG_NAME
from transformers.utils.peft_utils import find_adapter_config_file

from ..lora_beside import load_lora_beside
from ..models.audio_listen import AudioListenForCausalLM
from ..registration import register
from ..settings_record import checkpoint_fingerprint


def load_pipeline(
    model: str, dtype: str | None = None, device: str | None = None, accepts_text_models: bool = False
) -> Pipeline:
    """
    Loads the pipeline of a model, or of an adapter and its base model. If a LoRA adapter is in the subfolder `lora` of an
    adapter, both are active.

    Args:
        model (`str`): Folder or Hub name.
        dtype (`str`, *optional*):
            Name of a data type of torch, or `"auto"` for that of the checkpoint. Defaults to `"float32"` on a CPU, which
            is slow in half precision, and to `"auto"` on other devices.
        device (`str`, *optional*): Name of a device; by default the accelerator, or the CPU if there is none.
        accepts_text_models (`bool`, *optional*, defaults to `False`):
            Whether a language model without audio is loaded, with the pipeline `"text-generation"`.

    Returns:
        `Pipeline`: `"audio-text-to-text"` for a model with audio.

    Raises:
        FileNotFoundError: if there is no such folder.
        OSError: if the model cannot be loaded. For an adapter, the message names its base model.
        ValueError: if the device is not available, or the model has no audio and `accepts_text_models` is `False`.
    """
    register()
    check_model_name(model)
    on = _find_device(device)
    if dtype is None:
        dtype = "float32" if on.type == "cpu" else "auto"
    base, is_adapter = model, False
    try:
        base, is_adapter = find_base(model)
        loaded = find_auto_class(base).from_pretrained(model, dtype=dtype)
        if is_adapter and not isinstance(loaded, AudioListenForCausalLM):
            load_lora_beside(loaded, model)  # an audio model has loaded it itself
        common: dict[str, Any] = {"model": loaded, "device": on}
        if "audio" in loaded.input_modalities:
            processor = AutoProcessor.from_pretrained(base)
            return pipeline("audio-text-to-text", processor=processor, **common)  # type: ignore[call-overload]
        if accepts_text_models:
            return pipeline("text-generation", tokenizer=AutoTokenizer.from_pretrained(base), **common)
    except OSError as error:
        found = f"It is an adapter on {base!r}, which must be found too. " if is_adapter else ""
        raise OSError(f"The model {model!r} cannot be loaded. {found}{error}") from error
    raise ValueError(
        f"{model!r} is a {type(loaded).__name__}, a language model without audio; an audio model is needed."
    )


def find_auto_class(base: str) -> Any:
    """
    Finds the auto class of transformers that loads a language model with its audio inputs, if it has some.

    Args:
        base (`str`): Folder or Hub name of the model.

    Returns:
        `type`: `AutoModelForMultimodalLM`, `AutoModelForSeq2SeqLM` or `AutoModelForCausalLM`.

    Raises:
        OSError, ValueError: if it has no configuration that transformers knows.
    """
    config_class = type(AutoConfig.from_pretrained(base))
    if config_class in MODEL_FOR_MULTIMODAL_LM_MAPPING:
        return AutoModelForMultimodalLM
    if config_class in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING:  # Audio Flamingo 3 is among these only
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM


def model_fingerprints(model: str) -> dict[str, str | None]:
    """
    Fingerprints of the folders that [`load_pipeline`] reads: that of a model, or of an adapter and of its base model, which has
    the processor and the chat template. They tell a model that was changed from the former one.

    Args:
        model (`str`): Folder or Hub name.

    Returns:
        `dict[str, str | None]`: `checkpoint` and, if it is the folder of an adapter, `base_checkpoint`; see
        [`~peft_listen.settings_record.checkpoint_fingerprint`].

    Raises:
        OSError: for an adapter that does not name its base model.
    """
    fingerprints = {"checkpoint": checkpoint_fingerprint(model)}
    if os.path.isdir(model):
        try:
            base, is_adapter = find_base(model)
        except OSError as error:
            raise OSError(f"The model {model!r} cannot be loaded. {error}") from error
        if is_adapter:
            fingerprints["base_checkpoint"] = checkpoint_fingerprint(base)
    return fingerprints


def check_model_name(model: str) -> None:
    """
    Checks that a folder exists, if the name of a model can only be a folder.

    Args:
        model (`str`): Folder or Hub name.

    Raises:
        FileNotFoundError: if it does not exist and is not of the form of a Hub name.
    """
    is_hub_name = not os.path.isabs(model) and not model.startswith((".", "~")) and model.count("/") <= 1
    if not is_hub_name and not os.path.exists(model):
        raise FileNotFoundError(
            f"There is no file or folder {model!r}. Give an existing folder, or a name on the Hub."
        )


def _find_device(name: str | None) -> torch.device:
    """
    The device of this name, which is compared with those of this machine: torch only finds out when it is used.

    Raises:
        ValueError: if there is no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    cpu = torch.device("cpu")
    if name is None:
        return accelerator or cpu
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"`device={name}` is not a device. {str(error).splitlines()[0]}") from error
    available = [cpu.type, *([accelerator.type] if accelerator is not None else [])]
    count = torch.accelerator.device_count() if accelerator is not None and device.type == accelerator.type else 1
    if device.type not in available or (device.index or 0) >= count:
        raise ValueError(f"`device={name}` is not available on this machine. Available: {', '.join(available)}.")
    return device


def find_base(model: str) -> tuple[str, bool]:
    """
    Finds where the configuration and the processor of a model are.

    Args:
        model (`str`): Folder or Hub name of a model or of an adapter.

    Returns:
        `tuple[str, bool]`: folder or Hub name of the base model, and whether `model` is an adapter of it.

    Raises:
        OSError: for an adapter that does not name its base model.
    """
    path = find_adapter_config_file(model)
    if path is None or os.path.isfile(os.path.join(model, CONFIG_NAME)):
        return model, False
    with open(path, encoding="utf-8") as file:
        base = json.load(file).get("base_model_name_or_path")
    if not base:
        raise OSError(
            "It is an adapter that does not name its base model. Save the base model, and set `base_model_name_or_path` in "
            f"the adapter's {ADAPTER_CONFIG_NAME} to its folder or Hub name."
        )
    return base, True
