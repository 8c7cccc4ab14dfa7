"""Adds deep values to the input of decoder layers, by hooks on these layers alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from .deep_values import DeepPrompts, PendingDeepValues
from .layer import ListenLayer
from .placement import PromptPlacement


# Attribute of a layer of transformers: the function that runs the layer under gradient checkpointing.
_CHECKPOINT = "_gradient_checkpointing_func"


class DeepValueHooks:
    """
    The hooks on the layers of one decoder. A layer without deep values has none, and in a decoding step a hook returns in
    its first line.

    Args:
        layer ([`ListenLayer`]): with the pools, and the calls of each thread.
        decoder_layers (`nn.ModuleList`): the decoder's layers, in the order in which they run.
        embedding (`nn.Module`): the decoder's input embedding.
    """

    def __init__(self, layer: ListenLayer, decoder_layers: nn.ModuleList, embedding: nn.Module) -> None:
        self._layer = layer
        self._decoder_layers = decoder_layers
        self._embedding = embedding
        self._hooked: dict[int, nn.Module] = {}
        self._handles: dict[int, RemovableHandle] = {}

    def update(self) -> None:
        """Sets hooks on the layers for which a pool has deep values, and on no other."""
        pools = [self._layer.pool_of(name) for name in self._layer.listen_pools]
        needed = {number for pool in pools if pool.deep is not None for number in pool.deep.layers}
        for number in needed - set(self._hooked):
            module = self._hooked[number] = self._decoder_layers[number]
            self._handles[number] = module.register_forward_pre_hook(self.before_layer, with_kwargs=True)
        for number in set(self._hooked) - needed:
            self._handles.pop(number).remove()
            _unwrap_checkpoint(self._hooked.pop(number))

    def remove(self) -> None:
        """Removes all hooks."""
        for handle in self._handles.values():
            handle.remove()
        for module in self._hooked.values():
            _unwrap_checkpoint(module)
        self._handles, self._hooked = {}, {}

    def begin(self, prompts: DeepPrompts, placement: PromptPlacement) -> PendingDeepValues:
        """
        The deep values of a forward pass that begins.

        Args:
            prompts ([`DeepPrompts`]): of the rows of the pass.
            placement ([`PromptPlacement`]): position of the prompts in these rows.
        """
        for number, module in self._hooked.items():
            # In older versions of transformers a layer checkpoints its call with its hooks, which run again in the backward
            # pass, when the call has ended. There, the values are added to the input of the checkpoint.
            checkpoint = module.__dict__.get(_CHECKPOINT)
            if _checkpoints_hooks(module) and checkpoint is not None and not isinstance(checkpoint, _AddsBefore):
                module._gradient_checkpointing_func = _AddsBefore(self, number, checkpoint)  # type: ignore[assignment]
        return PendingDeepValues(prompts, placement, self._embedding)

    def before_layer(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        hidden_states = args[0] if args else kwargs["hidden_states"]
        if hidden_states.shape[1] == 1:  # a decoding step: a prefill has a prompt and a token at least
            return None
        number = next(number for number, hooked in self._hooked.items() if hooked is module)
        hidden_states = self.add(number, hidden_states)
        return ((hidden_states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden_states})

    @torch.compiler.disable
    def add(self, number: int, hidden_states: torch.Tensor) -> torch.Tensor:
        """The hidden states at the input of a layer, with the deep values of the calling thread's forward pass."""
        call = self._layer.thread.call
        if call is not None and call.deep is not None and call.is_running:
            return call.deep.add(number, hidden_states)
        self._check_recomputation(number)
        return hidden_states

    def _check_recomputation(self, number: int) -> None:
        """Raises an error if a layer is computed again, in a backward pass, without the deep values that it had before."""
        pool, module = self._layer.active_pool, self._hooked[number]
        if torch._C._current_graph_task_id() == -1 or pool is None or pool.deep is None:
            return
        if _checkpoints_hooks(module) and getattr(module, "gradient_checkpointing", False):
            return  # the input of the checkpoint has the values
        raise ValueError(
            f"The layer {number} of the decoder, {type(module).__name__}, is computed again in the backward pass by a kind "
            "of checkpointing that does not know its deep values (`value_layers`). Use `gradient_checkpointing_enable()` of "
            "the model, or `gradient_checkpointing=True` of the trainer."
        )


class _AddsBefore:
    """A checkpointing function that adds a layer's deep values to the input before the checkpoint."""

    def __init__(self, hooks: DeepValueHooks, number: int, original: Callable[..., Any]) -> None:
        self.original = original
        self._hooks = hooks
        self._number = number

    def __call__(self, function: Callable[..., Any], hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.original(function, self._hooks.add(self._number, hidden_states), *args, **kwargs)


def _checkpoints_hooks(module: nn.Module) -> bool:
    return type(module).__call__ is not nn.Module.__call__


def _unwrap_checkpoint(module: nn.Module) -> None:
    checkpoint = module.__dict__.get(_CHECKPOINT)
    if isinstance(checkpoint, _AddsBefore):
        module._gradient_checkpointing_func = checkpoint.original  # type: ignore[assignment]
