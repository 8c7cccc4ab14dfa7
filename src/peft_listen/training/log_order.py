"""
Adds values to a trainer's logs before any callback receives them.

`CallbackHandler` calls `on_log` in the order in which callbacks were added, and `Trainer` adds the integrations that
`report_to` names (TensorBoard, trackio, ...) before the callbacks of the user. Values that a callback adds in its own
`on_log` would therefore reach the integrations only if the user reorders the list.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import CallbackHandler


class LogValuesCallback(TrainerCallback):
    """A callback whose values are added to the logs before the `on_log` of any callback is called."""

    def __init__(self) -> None:
        install(CallbackHandler)

    def values_to_log(self, args: TrainingArguments, state: TrainerState, logs: dict[str, Any]) -> dict[str, Any]:
        """
        Returns the values to add.

        Args:
            args ([`~transformers.TrainingArguments`]): arguments of the trainer.
            state ([`~transformers.TrainerState`]): state of the trainer.
            logs (`dict[str, Any]`): the values that are logged otherwise; with `loss` in the logs of the training.

        Returns:
            `dict[str, Any]`: numbers by their names; empty if there is nothing to add.
        """
        raise NotImplementedError


def install(handler_class: type[CallbackHandler]) -> None:
    """
    Makes a callback handler ask its [`LogValuesCallback`]s for their values first.

    The method of the class is replaced because a callback gets no reference to its handler or trainer, and transformers has
    no hook between the creation of the logs and `on_log`. Handlers without such a callback work as before.

    Args:
        handler_class (`type[CallbackHandler]`): class to change. A second call has no effect.
    """
    on_log = handler_class.on_log
    if on_log.__module__ == __name__:
        return

    @functools.wraps(on_log, assigned=("__name__", "__qualname__", "__doc__"))
    def on_log_with_values(
        self: CallbackHandler,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any],
        **kwargs: Any,
    ) -> Any:
        for callback in self.callbacks:
            if isinstance(callback, LogValuesCallback):
                values = callback.values_to_log(args, state, logs)
                logs.update(values)
                if values and state.log_history:
                    state.log_history[-1].update(values)  # the trainer has copied the logs into its history
        return on_log(self, args, state, control, logs, **kwargs)

    handler_class.on_log = on_log_with_values  # type: ignore[method-assign]
