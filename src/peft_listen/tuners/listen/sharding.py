"""Parameters of which every process holds a part: DTensors of FSDP2, and those that DeepSpeed ZeRO-3 has partitioned."""

from __future__ import annotations

from typing import Any

import torch
from peft.utils.integrations import gather_params_ctx
from torch import nn


def is_sharded(parameter: torch.Tensor) -> bool:
    """Whether this process holds a part of the parameter, and a computation with it needs the others."""
    return hasattr(parameter, "device_mesh") or hasattr(parameter, "ds_id")


@torch.no_grad()
def call_with_whole_weight(module: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    """
    The output of a module with a parameter `weight`, also between the forward passes of a sharded model. All processes have
    to call this function.

    Args:
        module (`nn.Module`): an embedding.
        inputs (`torch.Tensor`): its input, the same in all processes.
    """
    weight: torch.Tensor = module.weight  # type: ignore[assignment]
    output: torch.Tensor
    if hasattr(weight, "full_tensor"):
        # A shallow copy, whose `forward` runs no hooks: FSDP2 takes the first module that it sees running for its root.
        whole: Any = object.__new__(type(module))
        whole.__dict__ = {**module.__dict__, "_parameters": {**module._parameters, "weight": weight.full_tensor()}}
        output = whole.forward(inputs)
        return output
    with gather_params_ctx(weight, modifier_rank=None):
        output = module(inputs)
    return output


@torch.no_grad()
def assign(parameter: torch.Tensor, value: torch.Tensor) -> None:
    """
    Sets a parameter to a whole tensor. All processes have to call this function, with the same tensor.

    Args:
        parameter (`torch.Tensor`): sharded or not.
        value (`torch.Tensor`): of the shape of the whole parameter.
    """
    if hasattr(parameter, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        value = value.to(parameter.device, parameter.dtype)
        parameter.copy_(distribute_tensor(value, parameter.device_mesh, parameter.placements))  # type: ignore[attr-defined]
        return
    with gather_params_ctx(parameter, modifier_rank=0):
        parameter.copy_(value)
