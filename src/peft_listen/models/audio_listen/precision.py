"""
Data types on machines without an accelerator. Published language models are mostly in bfloat16. CPUs without instructions for
it compute several times more slowly in it than in float32 (a linear layer and its gradients: 3.2 times on AVX2).
"""

import warnings
from typing import Any

import torch
from torch import nn


_HALF = (torch.bfloat16, torch.float16)
# Arguments of a part's `from_pretrained` that decide about its data type or its device.
_DECIDING_ARGUMENTS = ("dtype", "torch_dtype", "device_map", "quantization_config")


def has_accelerator() -> bool:
    """Whether torch has a device other than the CPU on this machine."""
    return torch.accelerator.is_available()


def is_chosen(dtype: Any) -> bool:
    """Whether a caller chose this data type; `None` and `"auto"` leave it to the checkpoint."""
    return dtype is not None and dtype != "auto"


def default_dtype(llm: Any, llm_kwargs: dict[str, Any]) -> torch.dtype | None:
    """
    Data type of the parts of a new model if the caller chose none.

    Args:
        llm (`str`, `os.PathLike` or `nn.Module`): The language model or its source.
        llm_kwargs (`dict`): Arguments of its `from_pretrained`.

    Returns:
        `torch.float32` on a machine without an accelerator; `None`, for the data type of the language model, with an
        accelerator, for a model object, and if `llm_kwargs` contain a data type, a device or a quantization.
    """
    if has_accelerator() or isinstance(llm, nn.Module):
        return None
    if any(llm_kwargs.get(name) is not None for name in _DECIDING_ARGUMENTS):
        return None
    return torch.float32


def warn_of_half_precision(model: Any, remedy: str) -> None:
    """
    Warns of a model in half precision on a machine without an accelerator.

    Args:
        model ([`~transformers.PreTrainedModel`]): The model. Quantized models are left out.
        remedy (`str`): The argument that chooses another data type; ends the message.
    """
    if has_accelerator() or model.dtype not in _HALF or getattr(model, "is_quantized", False):
        return
    name = str(model.dtype).removeprefix("torch.")
    warnings.warn(
        f"The model is in {name}, and this machine has no accelerator. On CPUs without instructions for {name}, training "
        f"and generation are several times faster in float32: {remedy}",
        UserWarning,
        stacklevel=3,
    )
