"""Writes a file or a folder under a temporary name and renames it when it is complete."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Gives a temporary path in the folder of `path`, which is renamed to `path` when the block ends.

    If the block raises, the temporary file or folder is removed, and an existing `path` is not changed.

    Args:
        path (`str` or `os.PathLike`): file to replace, or folder to create (it must not exist, or be empty).

    Yields:
        `pathlib.Path`: where to write; a file or a folder may be created there.

    Raises:
        OSError: if the temporary path cannot be renamed to `path`, for instance because `path` is a folder that is not
            empty.

    ```python
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> with atomic_path(folder / "scores.json") as temporary:
    ...     _ = temporary.write_text("{}")
    >>> [path.name for path in folder.iterdir()]
    ['scores.json']

    ```
    """
    target = Path(path).absolute()
    # A sibling is on the same file system, where renaming is atomic.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        if temporary.is_dir() and target.is_dir():
            target.rmdir()  # only an empty folder is replaced
        os.replace(temporary, target)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)
