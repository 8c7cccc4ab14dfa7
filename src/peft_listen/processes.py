"""Work that one of several processes does while the others wait for its result, and work that they share."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any, TypeVar

from accelerate import PartialState


Result = TypeVar("Result")
Item = TypeVar("Item")


def in_main_process(action: Callable[[], Result]) -> Result:
    """
    Runs an action in the main process. With several processes, all of them have to call this function.

    Args:
        action (`Callable`): takes no arguments; its result can be pickled.

    Returns:
        The result of the action, in all processes.

    Raises:
        Exception: what the action raises, in all processes. In the others, it is a `RuntimeError` with the same text if it
            cannot be pickled.
    """
    state = PartialState()
    if state.num_processes == 1:
        return action()
    from accelerate.utils import broadcast_object_list

    outcome: Any = (None, None)
    raised: Exception | None = None
    if state.is_main_process:
        try:
            outcome = (action(), None)
        except Exception as caught:  # without it, the other processes would wait
            raised, outcome = caught, (None, _portable(caught))
    ((result, error),) = broadcast_object_list([outcome])
    if raised is not None:
        raise raised
    if error is not None:
        raise error
    return result


def gather_from_processes(items: list[Item]) -> list[Item]:
    """
    Collects the items of all processes. With several processes, all of them have to call this function.

    Args:
        items (`list`): those of this process; they can be pickled.

    Returns:
        `list`: those of all processes, in the order of the processes.
    """
    if PartialState().num_processes == 1:
        return items
    from accelerate.utils import gather_object

    gathered: list[Item] = gather_object(items)
    return gathered


def _portable(error: Exception) -> Exception:
    """An error that other processes can read, of the same type if possible."""
    try:
        copied = pickle.loads(pickle.dumps(error))
        if type(copied) is type(error) and str(copied) == str(error):
            return error
    except Exception:  # the constructor of the error may raise anything
        pass
    return RuntimeError(f"{type(error).__name__}: {error}")
