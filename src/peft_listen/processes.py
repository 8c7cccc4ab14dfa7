"""Work that one of several processes does, such as writing a file, while the others wait for its result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState


Result = TypeVar("Result")


def in_main_process(action: Callable[[], Result]) -> Result:
    """
    Runs an action in the main process. With several processes, all of them have to call this function.

    Args:
        action (`Callable`): takes no arguments; its result can be pickled.

    Returns:
        The result of the action, in all processes.

    Raises:
        OSError, ValueError: what the action raises, in all processes.
    """
    state = PartialState()
    if state.num_processes == 1:
        return action()
    from accelerate.utils import broadcast_object_list

    outcome: Any = (None, None)
    if state.is_main_process:
        try:
            outcome = (action(), None)
        except (OSError, ValueError) as caught:
            outcome = (None, caught)
    ((result, error),) = broadcast_object_list([outcome])
    if error is not None:
        raise error
    return result
