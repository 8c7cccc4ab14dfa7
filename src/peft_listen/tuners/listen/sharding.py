"""Parameters of which every process holds a part: DTensors of FSDP2, and those that DeepSpeed ZeRO-3 has partitioned."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


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
    with gathered([weight]):
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
    with gathered([parameter], modifier_rank=0):
        parameter.copy_(value)
    if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
        # The optimizer of DeepSpeed steps on a copy of its own, and then overwrites the parameter.
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, value.to(parameter.device, torch.float32))


@contextmanager
def gathered(parameters: Iterable[torch.Tensor], modifier_rank: int | None = None) -> Iterator[None]:
    """Makes parameters whole that ZeRO-3 has partitioned. With the rank of a process, its changes of them are kept. All
    processes have to enter and leave the block."""
    partitioned = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not partitioned:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(partitioned, modifier_rank=modifier_rank):
        yield
