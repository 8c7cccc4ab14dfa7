"""Records with which settings an output is made, so that an interrupted run is not continued with other ones."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .files import atomic_path


# Bytes beyond which a record is not read.
_MAX_BYTES = 16 << 20

# Of files that are longer, evenly spaced blocks are hashed: those of a language model have many gigabytes.
_WHOLE_BYTES = 256 << 20
_BLOCK_BYTES = 1 << 20
_NUM_BLOCKS = 64

# Weights, configurations, vocabularies and chat templates.
_CHECKPOINT_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")


class SettingsRecord:
    """
    A JSON file with the settings of one output.

    Args:
        path (`str` or `os.PathLike`): the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def read(self) -> dict[str, Any] | None:
        """
        Returns the recorded settings, `None` if there is no record.

        Raises:
            ValueError: if the file is not a record.
            OSError: if it cannot be read.
        """
        if not self.path.exists():
            return None
        problem = "it is not a regular file" if not self.path.is_file() else None
        if problem is None and self.path.stat().st_size > _MAX_BYTES:
            problem = f"it has more than {_MAX_BYTES} bytes"
        if problem is None:
            try:
                settings = json.loads(self.path.read_text(encoding="utf-8"))
                if isinstance(settings, dict):
                    return settings
                problem = f"it contains a {type(settings).__name__}"
            except (ValueError, RecursionError) as error:
                problem = str(error)
        raise ValueError(
            f"{self.path} is not a record of settings: {problem}. Delete it together with the output beside it, or use "
            "another output."
        )

    def write(self, settings: Mapping[str, Any]) -> None:
        """
        Writes or replaces the record.

        Args:
            settings (`Mapping[str, Any]`): values that JSON can represent.
        """
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(settings, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    def changes(self, settings: Mapping[str, Any]) -> list[str] | None:
        """
        Compares settings with the recorded ones.

        Args:
            settings (`Mapping[str, Any]`): values that JSON can represent.

        Returns:
            `list[str]`: one line for each difference; `None` if there is no record.

        Raises:
            ValueError: if the file is not a record.
        """
        recorded = self.read()
        if recorded is None:
            return None
        before, now = _flat(recorded), _flat(json.loads(json.dumps(settings)))
        return [
            f"{name}: {_shown(before, name)} before, {_shown(now, name)} now"
            for name in sorted(before.keys() | now.keys())
            if before.get(name, _ABSENT) != now.get(name, _ABSENT)
        ]


_ABSENT = object()


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {name: value}
    return {
        path: leaf
        for key, item in value.items()
        for path, leaf in _flat(item, f"{name}.{key}" if name else str(key)).items()
    }


def _shown(values: Mapping[str, Any], name: str) -> str:
    if name not in values:
        return "not set"
    text = json.dumps(values[name], ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."


def fingerprint(value: Any) -> str:
    """Hash of a value that JSON can represent: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def checkpoint_fingerprint(folder: str | os.PathLike[str]) -> str | None:
    """
    Hash of the weights, configurations, vocabulary and chat template of a checkpoint, by which a model that was trained again
    or changed is told from the former one. Of files above 256 MiB, parts are hashed.

    Args:
        folder (`str` or `os.PathLike`): the checkpoint.

    Returns:
        `str`: 16 hexadecimal digits; `None` for a name that is not a folder, such as that of a repository on the Hub.
    """
    if not os.path.isdir(folder):
        return None
    digest = hashlib.sha256()
    root = Path(folder)
    # An adapter may lie in a subfolder beside its base model.
    paths = {path for pattern in _CHECKPOINT_FILES for depth in ("", "*/") for path in root.glob(depth + pattern)}
    for path in sorted(path for path in paths if path.is_file()):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(root).as_posix()} {size} ".encode())
        with open(path, "rb") as file:
            if size <= _WHOLE_BYTES:
                while block := file.read(_BLOCK_BYTES):
                    digest.update(block)
            else:
                for index in range(_NUM_BLOCKS):
                    file.seek(index * (size - _BLOCK_BYTES) // (_NUM_BLOCKS - 1))
                    digest.update(file.read(_BLOCK_BYTES))
    return digest.hexdigest()[:16]
