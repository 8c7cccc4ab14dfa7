"""Clips that a recipe writes: several clips of a row joined to one, and the audio of a dataset's column."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...audio import DEFAULT_SAMPLING_RATE, load_audio
from ...audio.limits import LimitError, check_size, resolve_limits
from ...files import atomic_path


# The first bytes of the containers that data sets use. Files are decoded by their content, so the ending is for people.
_ENDINGS = ((b"fLaC", ".flac"), (b"RIFF", ".wav"), (b"OggS", ".ogg"), (b"ID3", ".mp3"), (b"\xff", ".mp3"))


class UnusableClipError(Exception):
    """A clip cannot be read; the message says why."""


class ClipFolder:
    """
    A folder of clips that are named by their row and a hash of their content or their sources, so a clip that is there
    already is not written again. They lie in 256 folders, because folders with many files are slow.

    Args:
        folder (`Path`): the folder; created with the first clip.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def join(self, name: str, clips: list[Path], pause: float) -> Path:
        """
        Joins clips to one FLAC file, mono, 16 bit and 16 kHz.

        Args:
            name (`str`): name of the row.
            clips (`list[Path]`): the clips, in order.
            pause (`float`): seconds of silence between them.

        Returns:
            `Path`: the new file.

        Raises:
            UnusableClipError: if a clip cannot be read, is empty or not finite.
            OSError: if the file cannot be written.
            ImportError: if soundfile or soxr is not installed.
        """
        try:
            import soundfile
        except ImportError as error:
            raise ImportError('Joining clips needs soundfile: pip install "peft-listen[audio]"') from error
        try:
            states = [(os.fspath(clip), os.stat(clip)) for clip in clips]
        except OSError as error:
            raise UnusableClipError(str(error)) from None
        identity = [pause, *((path, status.st_size, status.st_mtime_ns) for path, status in states)]
        path = self._path(name, repr(identity).encode(errors="surrogateescape"), ".flac")
        if path.is_file():
            return path
        silence = np.zeros(round(pause * DEFAULT_SAMPLING_RATE), np.float32)
        try:
            parts = [part for clip in clips for part in (silence, load_audio(clip))][1:]
        except (OSError, ValueError) as error:
            raise UnusableClipError(str(error)) from None
        with _atomic_file(path) as temporary:
            joined = np.concatenate(parts).clip(-1, 1)
            soundfile.write(temporary, joined, DEFAULT_SAMPLING_RATE, format="FLAC", subtype="PCM_16")
        return path

    def store(self, name: str, audio: Any) -> Path:
        """
        Writes the audio of a dataset's column, as it is encoded.

        Args:
            name (`str`): name of the row.
            audio (`Mapping`): the value of a column `datasets.Audio(decode=False)`, `{"bytes", "path"}`.

        Returns:
            `Path`: the new file, or, without `bytes`, the file that the dataset refers to.

        Raises:
            UnusableClipError: if there are no bytes and no such file, or the clip is larger than the limit.
            OSError: if the file cannot be written.
        """
        if not isinstance(audio, Mapping):
            raise UnusableClipError("the row has no audio")
        content, path = audio.get("bytes"), audio.get("path")
        if not content:
            if isinstance(path, str) and os.path.isabs(path) and os.path.isfile(path):
                return Path(path)
            raise UnusableClipError("the row has no audio")
        try:
            check_size(len(content), name, resolve_limits(None))
        except LimitError as error:
            raise UnusableClipError(str(error)) from None
        ending = next((ending for start, ending in _ENDINGS if content.startswith(start)), ".audio")
        target = self._path(name, content, ending)
        if not target.is_file():
            with _atomic_file(target) as temporary:
                temporary.write_bytes(content)
        return target

    def _path(self, name: str, identity: bytes, ending: str) -> Path:
        digest = hashlib.sha256(identity).hexdigest()
        readable = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:80].strip("-")
        return self.folder / digest[:2] / f"{readable}-{digest[2:14]}{ending}"


def _atomic_file(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_path(path)
