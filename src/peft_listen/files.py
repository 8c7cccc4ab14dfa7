"""
Writing of files and folders under a temporary name that is renamed at the end, so that they are never seen half-written.

A writer that is killed cannot remove its temporary file. The name of a temporary file therefore states which process
writes it, and every later write in the same folder removes the files of processes that have ended.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from safetensors import SafetensorError


# The writer's machine, process id and start time (in seconds), and a random part. Versions before 0.1 had 32 random digits.
_TEMPORARY_NAME = re.compile(
    r"\..*\.(?:[0-9a-f]{32}|(?P<machine>[0-9a-f]{8})-(?P<pid>[0-9]{1,9})-(?P<start>[0-9]{1,12})-[0-9a-f]{8})\.tmp"
)

# Whether a process of another machine is alive cannot be determined, so its files are removed by age.
_MAX_AGE_SECONDS = 24 * 3600

# The start time of a process is derived from the clock, which may be adjusted by some seconds.
_START_TOLERANCE_SECONDS = 60

# File names have at most 255 bytes on most file systems; the rest of a temporary name needs less than 55.
_MAX_NAME_BYTES = 200

# Errors of a full disk, for which the operating system does not name the file.
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

_SPECIAL_FILES = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """
    Gives a temporary path in the folder of `path`, which is renamed to `path` when the block ends.

    If the block raises, the temporary file or folder is removed and whatever `path` held before stays as it was. The
    content is on the disk before it takes the name, so a disk that is full or a power cut cannot leave a part of it
    there. Temporary files of processes that were killed are removed, see [`remove_abandoned`].

    Args:
        path (`str` or `os.PathLike`): file to replace, or folder to create (it must not exist, or be empty).

    Yields:
        `pathlib.Path`: where to write; a file or a folder may be created there.

    Raises:
        OSError: if `path` is a symbolic link, a device or another special file, or a folder that is not empty, its
            parent folder does not exist, or the content cannot be written; the message contains the path.

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
    _check_target(target)
    remove_abandoned(target.parent)
    # A sibling is on the same file system, where renaming is atomic.
    temporary = temporary_path(target)
    try:
        with write_errors(target, temporary):
            yield temporary
            _flush_to_disk(temporary)
            _check_target(target)  # it may have been created in the meantime
            if temporary.is_dir() and target.is_dir():
                target.rmdir()  # only an empty folder is replaced
            os.replace(temporary, target)
    finally:
        _remove(temporary)


@contextmanager
def write_errors(target: str | os.PathLike[str], temporary: Path | None = None) -> Iterator[None]:
    """
    Turns what libraries raise when a file cannot be written into an `OSError` that names the file.

    safetensors and torch have errors of their own for a full disk, and that of the operating system does not name the file.

    Args:
        target (`str` or `os.PathLike`): file or folder that the block writes.
        temporary (`pathlib.Path`, *optional*): where the block writes it, a name that means nothing to the user.

    Raises:
        OSError: if the block cannot write; other errors stay as they are.
    """
    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{os.fspath(target)} cannot be written: {error}") from error
    except RuntimeError as error:
        if not _is_raised_by(error, "torch.serialization"):
            raise
        reason = str(error).partition("\n")[0]
        raise OSError(
            f"{os.fspath(target)} cannot be written, because the disk is full or fails ({reason})"
        ) from error
    except OSError as error:
        is_nameless = error.errno in _NO_ROOM and error.filename is None
        if is_nameless or (temporary is not None and error.filename == os.fspath(temporary)):
            raise OSError(error.errno, error.strerror, os.fspath(target)) from error
        raise


def check_output_file(path: str | os.PathLike[str]) -> None:
    """
    Checks that [`atomic_path`] can write a file of this name. Call it before a long computation whose result is written.

    Args:
        path (`str` or `os.PathLike`): file to create or to replace.

    Raises:
        OSError: if `path` is a folder, a symbolic link, a device or another special file, or its parent folder does not
            exist.
    """
    target = Path(path).absolute()
    _check_target(target)
    if target.is_dir():
        raise IsADirectoryError(f"{target} cannot be written: it is a folder. Pass the path of a file.")


def temporary_path(path: str | os.PathLike[str]) -> Path:
    """Returns an unused path in the folder of `path` whose name states that this process writes it."""
    target = Path(path).absolute()
    name = os.fsencode(target.name)[:_MAX_NAME_BYTES].decode(errors="ignore")
    pid = os.getpid()
    start = int(psutil.Process(pid).create_time())
    return target.with_name(f".{name}.{_machine()}-{pid}-{start}-{uuid.uuid4().hex[:8]}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file of this name is written by [`atomic_path`], or was left by a process that was killed."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def remove_abandoned(folder: str | os.PathLike[str]) -> None:
    """
    Removes the temporary files and folders of [`atomic_path`] whose writers have ended without removing them.

    A writer on this machine has ended if no process has its id and start time. For a writer on another machine (or in
    another container), a file that was not modified for a day counts as abandoned.

    Args:
        folder (`str` or `os.PathLike`): folder whose direct entries are examined. Nothing happens if it cannot be read.
    """
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(folder)):
            match = _TEMPORARY_NAME.fullmatch(entry.name)
            if match is not None and not entry.is_symlink() and _is_abandoned(Path(entry.path), match):
                _remove(Path(entry.path))


def _is_abandoned(path: Path, name: re.Match[str]) -> bool:
    if name["machine"] != _machine():
        with contextlib.suppress(OSError):
            modified = max(os.stat(each).st_mtime for each in [path, *path.rglob("*")])
            return time.time() - modified > _MAX_AGE_SECONDS
        return False
    try:
        process = psutil.Process(int(name["pid"]))
        is_writer = abs(process.create_time() - int(name["start"])) <= _START_TOLERANCE_SECONDS
        return not is_writer or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.Error:
        return False


def _is_raised_by(error: BaseException, module: str) -> bool:
    """Whether the innermost function that an error comes from is one of this module: `torch.save` has several messages."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__") == module


@functools.cache
def _machine() -> str:
    """Identifies the machine, and the container if there is one, because process ids are unique in these only."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {namespace}".encode()).hexdigest()[:8]


def _check_target(target: Path) -> None:
    try:
        mode = os.lstat(target).st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise FileNotFoundError(
                f"{target} cannot be written: the folder {target.parent} does not exist. Create it first."
            ) from None
        return
    kind = _SPECIAL_FILES.get(stat.S_IFMT(mode))
    if kind is not None:
        destination = f" to {os.path.realpath(target)}" if stat.S_ISLNK(mode) else ""
        raise OSError(
            f"{target} cannot be written: it is {kind}{destination}, which would be replaced by a file. Expected a new "
            "name or the name of a regular file. Pass another path."
        )
    if stat.S_ISDIR(mode) and any(target.iterdir()):
        raise FileExistsError(
            f"{target} cannot be written: it is a folder that is not empty. Pass another path, or remove the folder."
        )


def _flush_to_disk(path: Path) -> None:
    """Waits until the disk holds a file or all files of a folder: some file systems report only then that it is full."""
    files = [each for each in path.rglob("*") if each.is_file()] if path.is_dir() else [path]
    for file in files:
        # Windows flushes only files that are open for writing.
        descriptor = os.open(file, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
