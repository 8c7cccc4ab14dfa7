"""Errors of the trainer's data loader as errors that say what happened to which clip, and what to do."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..training.feature_cache import MissingClipError


_DEAD_WORKER = re.compile(r"DataLoader worker \(pid[^)]*\) .*|DataLoader worker \(pid\(s\)[^)]*\) .*")
_CONTINUE = "Run the same command again to continue from the last checkpoint."


@contextmanager
def loading_errors() -> Iterator[None]:
    """
    Explains the errors that loading the data raises, in this process or in a worker of the data loader.

    Raises:
        ChildProcessError: if a worker was killed.
        OSError, ValueError: what a worker raised, without the traceback that the data loader adds to its message, or for a
            clip that is not in the feature cache.
    """
    try:
        yield
    except MissingClipError as error:
        # The run has built the cache for all of its clips, so the content of a file was changed since.
        raise OSError(f"{_without_traceback(error)} Was the file modified during the run? {_CONTINUE}") from error
    except (OSError, ValueError) as error:
        message = _without_traceback(error)
        if message == str(error):
            raise
        # Subclasses may need other arguments than a message.
        kind = next(
            known for known in (FileNotFoundError, PermissionError, OSError, ValueError) if isinstance(error, known)
        )
        raise kind(f"{message} {_CONTINUE}") from error
    except RuntimeError as error:
        found = _DEAD_WORKER.search(str(error))
        if found is None:
            raise
        raise ChildProcessError(
            f"A worker of the data loader ended: {found[0].rstrip('. ')}. If the system killed it for lack of memory, "
            f"reduce `dataloader_num_workers` or the batch size. {_CONTINUE}"
        ) from error


def _without_traceback(error: Exception) -> str:
    """The message that an error had in the worker: the data loader makes it the end of a traceback."""
    message = str(error)
    if not message.startswith("Caught ") or "in DataLoader worker process" not in message:
        return message
    # The last line of the traceback begins with the name of the error, with its module if it is not built in.
    parts = re.split(rf"^(?:[\w.]+\.)?{type(error).__name__}: ", message, flags=re.MULTILINE)
    return parts[-1].strip()
