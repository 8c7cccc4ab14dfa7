"""Marks the forward passes of `generate` among all calls of a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from .hooks import PromptHooks


class InputPreparation:
    """
    Wraps the `prepare_inputs_for_generation` of one model, which `generate` calls before each of its forward passes. It
    tells them from other calls of the model in between, for example by a streamer.

    Args:
        model (`nn.Module`): a model with `generate`.
        hooks ([`PromptHooks`]): the hooks on its backbone.
    """

    def __init__(self, model: nn.Module, hooks: PromptHooks) -> None:
        self._model = model
        self._hooks = hooks
        self._overridden: Callable[..., Any] | None = model.__dict__.get("prepare_inputs_for_generation")
        model.prepare_inputs_for_generation = self  # type: ignore[assignment]

    def remove(self) -> None:
        """Restores the model's own method."""
        self._model.__dict__.pop("prepare_inputs_for_generation", None)
        if self._overridden is not None:
            self._model.prepare_inputs_for_generation = self._overridden  # type: ignore[assignment]

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self._original)  # `generate` reads it

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        inputs: dict[str, Any] = self._original(*args, **kwargs)
        generate_call = self._hooks.layer.thread.generate_call
        if generate_call is not None:
            generate_call.prepare(inputs, self._hooks.cache_name)
        return inputs

    @property
    def _original(self) -> Callable[..., dict[str, Any]]:
        if self._overridden is not None:
            return self._overridden
        method: Callable[..., dict[str, Any]] = type(self._model).prepare_inputs_for_generation.__get__(self._model)  # type: ignore[attr-defined]
        return method
