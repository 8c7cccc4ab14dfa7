"""Files on this machine: only regular files are read, and no more of them than the limit allows."""

import os
import stat
from typing import Any

from .limits import AudioLimits, check_size


_KINDS = (
    (stat.S_ISFIFO, "a named pipe (FIFO)"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
)
_BLOCK_BYTES = 1 << 20


def read_file(path: str, name: str, limits: AudioLimits) -> bytes:
    """
    Reads a regular file.

    A pipe can block for ever and a device can be endless, so both are refused before they are opened.

    Args:
        path (`str`): The file; links are followed.
        name (`str`): What the error message calls it.
        limits ([`AudioLimits`]): Their `max_bytes` is checked.

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: The file does not exist, is not a regular file, cannot be read, or
            is larger than the limit.
    """
    try:
        _check_regular(os.stat(path), name)
        # Another process may replace the file at any time. Without O_NONBLOCK, opening a pipe waits for its writer.
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        )
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{name}: no such audio file (the working directory is {os.getcwd()}). Check the path; a URL must start "
            "with http:// or https://."
        ) from None
    except OSError as error:
        if error.strerror is None:
            raise
        # Without the path, which the message of `error` repeats: the address of another protocol may have a password.
        raise type(error)(f"{name}: the audio file cannot be opened ({error.strerror}).") from None
    except ValueError as error:
        raise FileNotFoundError(f"{name!r} is not a path ({error}). Pass the path of an audio file.") from None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        _check_regular(status, name)
        check_size(status.st_size, name, limits)
        return read_bounded(file, name, limits)


def _check_regular(status: os.stat_result, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(f"{name} is a directory; expected an audio file. Pass the path of a file inside it.")
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), "a special file")
        raise OSError(
            f"{name} is {kind}; expected a regular file. Write its content to a file first, or pass the content as bytes."
        )


def read_bounded(file: Any, name: str, limits: AudioLimits) -> bytes:
    """
    Reads a file object to its end, or until it exceeds the limit.

    Args:
        file: A binary file object.
        name (`str`): What the error message calls it.
        limits ([`AudioLimits`]): Their `max_bytes` is checked.

    Raises:
        LimitError: The content is larger than the limit.
        ValueError: The file object returns text.
    """
    blocks: list[bytes] = []
    num_bytes = 0
    while True:
        block = file.read(_BLOCK_BYTES)
        if isinstance(block, (bytearray, memoryview)):
            block = bytes(block)
        if not isinstance(block, bytes):
            raise ValueError(f'{name}: the file object returns text. Open it in binary mode: open(path, "rb").')
        if not block:
            return b"".join(blocks)
        blocks.append(block)
        num_bytes += len(block)
        check_size(num_bytes, name, limits)
