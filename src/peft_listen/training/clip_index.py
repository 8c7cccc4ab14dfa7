"""Index of the clips of a feature cache: it finds the key of a file that did not change without decoding it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import stat
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..audio import AudioLimits, display_name, is_url, load_audio
from ..audio.files import read_file
from ..audio.limits import resolve_limits
from ..files import atomic_path


_FORMAT = "peft-listen clip index"
_VERSION = 1
_FILE_NAME = re.compile(r"[0-9a-f]{64}\.json")
_DIGEST = re.compile(r"[0-9a-f]{32}")
# Bytes of an index file beyond which it is not read; an entry has 70.
_MAX_BYTES = 1 << 30

# The times of a file have the resolution of its file system (up to 2 s): a file that was modified a moment ago could be
# modified once more without a change of its times. Until then it is identified by its content.
_SETTLING_NS = 2_000_000_000


class ClipIndex:
    """
    Maps what is known of a clip without decoding it to its key, the hash of its samples.

    A file is first looked up by its absolute path, size, inode, and times of modification and of status change (a copy or
    an unpacked archive may keep the former time, but not the latter). A file that is not known by these, and encoded audio
    in memory, is looked up by a hash of its content, so files that were moved, copied or touched are read but not decoded.

    The keys do not depend on the encoders, so all encoders that use a folder share one index. Its files are JSON, named by
    the hash of their content and never changed: several processes may write at once, and a file that is truncated or was
    edited is recognized. It is ignored with a warning, like a file in another format; its clips are decoded again, and the
    next build of the cache replaces it. The index contains only hashes, no paths.

    Args:
        folder (`str` or `os.PathLike`): folder of the index; created when the first keys are saved.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._keys: dict[str, str] = {}
        self._unsaved: dict[str, str] = {}
        self._read: set[Path] = set()
        self.refresh()

    def __len__(self) -> int:
        """Number of known files and contents."""
        return len(self._keys)

    def refresh(self) -> None:
        """Reads the index files that were added since the last call."""
        while added := [path for path in self._paths() if path not in self._read]:
            for path in added:
                self._read.add(path)
                # If another process has merged the file in the meantime, the next pass finds the merged one.
                with contextlib.suppress(FileNotFoundError):
                    self._keys.update(self._read_or_warn(path))

    def key(self, clip: Any, limits: AudioLimits | None = None) -> str:
        """
        Returns the key of a clip. The clip is decoded only if neither its file nor its content is in the index.

        Args:
            clip (`Any`): anything that [`load_audio`] accepts.
            limits ([`~peft_listen.audio.AudioLimits`], *optional*): limits for a clip that is read or decoded.

        Returns:
            `str`: 32 hexadecimal digits, from the samples after mixing down and resampling to 16 kHz.

        Raises:
            OSError, ValueError, ImportError: as [`load_audio`].
        """
        path, content = _encoded(clip)
        if path is None and content is None:
            return _hash(load_audio(clip, limits=limits).tobytes())
        status = None
        if path is not None:
            start = time.time_ns()
            status = _status(path, start)
            if status is not None and status in self._keys:
                return self._keys[status]
            content = read_file(path, display_name(path), resolve_limits(limits))
            if status != _status(path, start):  # the file was modified while it was read
                status = None
        assert content is not None
        identity = _content_identity(content)
        key = self._keys.get(identity)
        if key is None:
            # The content that was hashed is decoded, since the file may be modified at any time.
            source = clip if path is None else {"path": path, "bytes": content}
            key = _hash(load_audio(source, limits=limits).tobytes())
            self._add(identity, key)
        if status is not None:
            self._add(status, key)
        return key

    @staticmethod
    def is_encoded(clip: Any) -> bool:
        """Whether a clip is a file or the content of one, which has to be decoded if it is not in the index."""
        return _encoded(clip) != (None, None)

    def find(self, clip: Any) -> str | None:
        """
        Returns the key of a clip if the index contains it, without reading a file.

        Args:
            clip (`Any`): anything that [`load_audio`] accepts.

        Returns:
            `str` or `None`: the key; `None` for a clip that is unknown or given by its samples.
        """
        path, content = _encoded(clip)
        if path is not None:
            status = _status(path, time.time_ns())
            return None if status is None else self._keys.get(status)
        return None if content is None else self._keys.get(_content_identity(content))

    def save(self) -> None:
        """Writes the keys that were found since the last call. A failure is a warning, since nothing else depends on it."""
        if not self._unsaved:
            return
        try:
            self._write(self._unsaved)
        except OSError as error:
            warnings.warn(
                f"The index of the feature cache cannot be written ({error}). The cache works without it, but each new "
                "process has to decode the clips again to find them.",
                UserWarning,
                stacklevel=2,
            )
        self._unsaved = {}

    def merge(self) -> None:
        """
        Replaces all index files by one, and removes damaged ones. Files of other formats stay.

        A file is removed only after another file with all of its entries was written, so other processes may read, write
        and merge at the same time.
        """
        paths = self._paths()
        if len(paths) < 2:
            return
        contents: dict[Path, dict[str, str]] = {}
        damaged = []
        for path in paths:
            try:
                contents[path] = _parse(path)
            except _DamagedError:
                if _FILE_NAME.fullmatch(path.name):  # otherwise it was never an index file
                    damaged.append(path)
            except (OSError, ValueError):
                pass
        with contextlib.suppress(OSError):  # such as a folder that is read-only
            if len(contents) > 1:
                merged = self._write({name: key for each in contents.values() for name, key in each.items()})
                damaged += [path for path in contents if path != merged]
            for path in damaged:
                path.unlink(missing_ok=True)

    def _add(self, identity: str, key: str) -> None:
        self._keys[identity] = self._unsaved[identity] = key

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.json"))

    def _read_or_warn(self, path: Path) -> dict[str, str]:
        try:
            return _parse(path)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            warnings.warn(
                f"{path} is ignored: {error}. Clips that are known only from this file are decoded again. Build the feature "
                "cache again to replace their entries; the file can be deleted.",
                UserWarning,
                stacklevel=4,
            )
            return {}

    def _write(self, keys: Mapping[str, str]) -> Path:
        document = {"format": _FORMAT, "version": _VERSION, "keys": keys}
        content = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        path = self.folder / f"{hashlib.sha256(content).hexdigest()}.json"
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_bytes(content)
        self._read.add(path)
        return path


class _DamagedError(ValueError):
    """The content of an index file does not match the hash in its name."""


def _parse(path: Path) -> dict[str, str]:
    """Reads and checks an index file. Raises an `OSError` or a `ValueError` whose message is a part of a sentence."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for its writer
        raise OSError("it is not a regular file")
    if status.st_size > _MAX_BYTES:
        raise ValueError(f"it has {status.st_size} bytes, but an index file has at most {_MAX_BYTES}")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != path.stem:
        raise _DamagedError("its content does not match the hash in its name, so it is truncated or was changed")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is not valid JSON ({error})") from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(f"it is not a {_FORMAT}")
    if document.get("version") != _VERSION:
        raise ValueError(f"it has version {document.get('version')!r} of the format, expected {_VERSION}")
    keys = document.get("keys")
    if not isinstance(keys, dict) or not all(map(_is_entry, keys.items())):
        raise ValueError("its entries are not pairs of 32 hexadecimal digits")
    return keys


def _is_entry(entry: tuple[str, Any]) -> bool:
    return all(isinstance(value, str) and _DIGEST.fullmatch(value) for value in entry)


def _encoded(clip: Any) -> tuple[str | None, bytes | None]:
    """
    Returns the path of a clip that is a file, or the content of a clip that is encoded audio in memory, by the rules of
    [`load_audio`]. Both are `None` for samples, URLs and file objects.
    """
    if isinstance(clip, Mapping):
        if any(clip.get(name) is not None for name in ("array", "raw")):
            return None, None
        if clip.get("bytes") is not None:
            return _encoded(bytes(clip["bytes"]))
        clip = clip.get("path")
    if isinstance(clip, (bytes, bytearray, memoryview)):
        return None, bytes(clip)
    if isinstance(clip, (str, os.PathLike)):
        path = os.fsdecode(clip)
        return (None if not path or is_url(path) else path), None
    return None, None


def _status(path: str, now: int) -> str | None:
    """
    The identity of a file by its path and status; `None` if it is not a regular file or was modified just before `now`.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode) or max(status.st_mtime_ns, status.st_ctime_ns) > now - _SETTLING_NS:
        return None
    # Two files may have the same size and times, and one may take the other's path: a link, or a folder that is renamed.
    values = (os.path.abspath(path), status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns)
    return _hash("\0".join(map(str, ("file", *values))).encode(errors="surrogateescape"))


def _content_identity(content: bytes) -> str:
    digest = hashlib.sha256(b"content\0")
    digest.update(content)
    return digest.hexdigest()[:32]


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
