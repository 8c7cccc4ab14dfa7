"""Detects optimizer steps.

A step counts when an optimizer that holds one of the observed parameters has run its `step`; torch calls a global hook
after it, no matter how the optimizer updates its parameters. A step that gradient scaling skips does not count. In a
loop without such an optimizer (parameters that are written by hand, or copied from a master copy), a step counts when
the parameters have changed between two forward passes in training.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook


class StepObserver:
    """
    Detects that an optimizer has updated the observed parameters.

    Args:
        parameters (`Callable`): returns the observed parameters; called each time, since sharding replaces them.
        on_step (`Callable`): called when an optimizer that holds one of them has run its `step`.
    """

    def __init__(self, parameters: Callable[[], Iterable[torch.Tensor]], on_step: Callable[[], None]) -> None:
        self._parameters = parameters
        self._on_step = on_step
        self._optimizer: weakref.ref[torch.optim.Optimizer] | None = None
        self._seen: list[torch.Tensor] | None = None
        _observe(self)

    def expect_new_optimizer(self) -> None:
        """Compares values again until an optimizer has run, unless the known one still exists; called when the model is
        switched to training."""
        if self._optimizer is not None and self._optimizer() is None:
            self._optimizer = None

    def forget_values(self) -> None:
        """Starts the comparison again; called when the parameters are loaded or initialized."""
        self._seen = None

    @torch.no_grad()
    def has_changed(self) -> bool:
        """
        Whether the parameters have changed since the last call, in a loop whose optimizer the hook does not see.

        Called in each forward pass in training. It compares values, which synchronizes with the device, until an
        optimizer that holds the parameters has run for the first time; from then on it returns `False` at once.
        """
        if self._optimizer is not None:
            return False
        parameters = [parameter.detach() for parameter in self._parameters()]
        seen, self._seen = self._seen, [parameter.clone() for parameter in parameters]
        return seen is not None and any(map(_differs, parameters, seen))

    def before_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called before the `step` of any optimizer in this process, whose closure may call the model."""
        if self._holds_parameters(optimizer):
            self._optimizer = weakref.ref(optimizer)
            self._seen = None

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after the `step` of any optimizer in this process."""
        if not self._holds_parameters(optimizer):
            return
        # An optimizer that supports gradient scaling itself runs its `step` on overflow too, and changes nothing.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not float(found_inf) > 0:
            self._on_step()

    def _holds_parameters(self, optimizer: torch.optim.Optimizer) -> bool:
        observed = {id(parameter) for parameter in self._parameters()}
        return any(id(parameter) in observed for group in optimizer.param_groups for parameter in group["params"])

    # An observer belongs to one module. Copies of the module start without one, and create their own.

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        return None

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()


def _differs(parameter: torch.Tensor, seen: torch.Tensor) -> bool:
    # A parameter that was cast or moved in between was converted, not trained.
    is_comparable = (parameter.shape, parameter.dtype, parameter.device) == (seen.shape, seen.dtype, seen.device)
    return is_comparable and not torch.equal(parameter, seen)


_observers: weakref.WeakSet[StepObserver] = weakref.WeakSet()
_hooks: list[Any] = []


def _observe(observer: StepObserver) -> None:
    if not _hooks:  # registered by the first training in this process: inference adds nothing to any optimizer
        _hooks.append(register_optimizer_step_pre_hook(_before_step))
        _hooks.append(register_optimizer_step_post_hook(_after_step))
    _observers.add(observer)


@torch.compiler.disable
def _before_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for observer in list(_observers):
        observer.before_step(optimizer)


@torch.compiler.disable
def _after_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for observer in list(_observers):
        observer.after_step(optimizer)
