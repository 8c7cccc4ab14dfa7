"""
Layers of bitsandbytes in 4 bits on CPUs with AVX512-BF16. In evaluation mode, bitsandbytes packs their weights for a kernel that
has no backward pass, and leaves them so: a later training gets no gradients through these layers, without an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


# Attribute of `bitsandbytes.nn.Linear4bit` that says whether the weights are packed.
_PACKS = "support_avx512bf16_for_cpu"


def keep_backward_pass(model: nn.Module) -> None:
    """
    Does not let bitsandbytes pack the weights of layers in 4 bits, and unpacks those that are packed. Packing has rounded their
    scales to bfloat16. Inference on such CPUs is slower then.

    Args:
        model (`nn.Module`): the model; changed in place. Models without such layers are left as they are.
    """
    for layer in _packing_layers(model):
        setattr(layer, _PACKS, False)
        if getattr(getattr(layer.weight, "quant_state", None), "packing_format_for_cpu", False):
            layer.state_dict()  # bitsandbytes unpacks the weights before it saves them
            state = layer.weight.quant_state
            if state.absmax.ndim == 2:  # bitsandbytes 0.50 leaves the scales in the order of the packed weights
                state.absmax = state.absmax.T.reshape(-1).float()


@contextmanager
def without_packing(model: nn.Module) -> Iterator[None]:
    """
    Does not let bitsandbytes pack weights inside the block.

    Args:
        model (`nn.Module`): the model.
    """
    layers = list(_packing_layers(model))
    for layer in layers:
        setattr(layer, _PACKS, False)
    try:
        yield
    finally:
        for layer in layers:
            setattr(layer, _PACKS, True)


def _packing_layers(model: nn.Module) -> Iterator[Any]:
    return (module for module in model.modules() if getattr(module, _PACKS, False))
