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
from torch.optim.optimizer import register_optimizer_step_post_hook


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
        self._optimizer_is_known = False
        self._seen: list[torch.Tensor] | None = None

    def expect_new_optimizer(self) -> None:
        """Compares values again until an optimizer has run; called when the model is switched to training."""
        self._optimizer_is_known = False

    @torch.no_grad()
    def has_changed(self) -> bool:
        """
        Whether the parameters have changed since the last call, in a loop whose optimizer the hook does not see.

        Called in each forward pass in training. It compares values, which synchronizes with the device, until an
        optimizer that holds the parameters has run for the first time; from then on it returns `False` at once.
        """
        _observe(self)
        if self._optimizer_is_known:
            return False
        parameters = [parameter.detach() for parameter in self._parameters()]
        seen, self._seen = self._seen, [parameter.clone() for parameter in parameters]
        return seen is not None and any(map(_differs, parameters, seen))

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Called after the `step` of any optimizer in this process."""
        observed = {id(parameter) for parameter in self._parameters()}
        if not any(id(parameter) in observed for group in optimizer.param_groups for parameter in group["params"]):
            return
        self._optimizer_is_known = True
        self._seen = None
        # An optimizer that supports gradient scaling itself (`fused=True`) runs its `step` on overflow too, and changes
        # nothing. Reading that waits for the device, once per optimizer step: the next prompt length depends on it.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is None or not float(found_inf) > 0:
            self._on_step()

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
_hook: Any = None


def _observe(observer: StepObserver) -> None:
    global _hook
    if _hook is None:  # registered by the first training in this process, so inference does not affect any optimizer
        _hook = register_optimizer_step_post_hook(_after_step)
    _observers.add(observer)


@torch.compiler.disable
def _after_step(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for observer in list(_observers):
        observer.after_step(optimizer)
