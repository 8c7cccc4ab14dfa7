"""Saves the files of a checkpoint so that a killed process leaves the old checkpoint, the new one, or none that loads."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .files import check_output_file, remove_abandoned, temporary_path, write_errors


# A checkpoint without these files is not loaded, so they are removed first, in this order, and written last, in the opposite
# order: a base model without the adapter that was saved with it would be loaded.
_CONFIGURATIONS = ("config.json", "adapter_config.json")
_WEIGHTS = re.compile(r"(model|adapter_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")


@contextmanager
def replaced_checkpoint(
    folder: str | os.PathLike[str], kept: Sequence[str] = (), dropped: Sequence[str] = ()
) -> Iterator[Path]:
    """
    A temporary folder whose files take the place of those of `folder` when the block ends.

    The files of a checkpoint belong together: weights under the configuration of an older adapter load without an error
    and give wrong answers. They are therefore written elsewhere first. Then the configuration of `folder` is removed, the
    new files are moved, those of subfolders first, and the new configuration comes last. A base model, which has a
    `config.json`, also replaces the adapter in `folder`. Other files of `folder` stay. If the block raises, nothing in
    `folder` changes.

    Args:
        folder (`str` or `os.PathLike`): The folder of the checkpoint; it is created if it does not exist.
        kept (`Sequence[str]`, *optional*): Names of files that the block reads and updates.
        dropped (`Sequence[str]`, *optional*): Names of files, also in subfolders, that do not stay if the block does not
            write them.

    Yields:
        `pathlib.Path`: an empty folder, except for the files in `kept`, of the same name as `folder`.

    Raises:
        OSError: if a file to be replaced is a symbolic link, a device or another special file, or the disk is full; nothing in
            `folder` changes.
    """
    target = Path(folder).resolve()
    target.mkdir(parents=True, exist_ok=True)
    remove_abandoned(target)
    # Inside `folder`, and so on the same file system, where renaming is atomic.
    outer = temporary_path(target / "checkpoint")
    temporary = outer / target.name
    temporary.mkdir(parents=True)
    try:
        for name in kept:
            _check_replaced(target / name)
            if (target / name).is_file():
                shutil.copy2(target / name, temporary / name)
        with write_errors(target):
            yield temporary
        for path in temporary.rglob("*"):
            if path.is_file():
                _check_replaced(target / path.relative_to(temporary))
        # Without its configuration the folder is no model, while the files of its subfolders are those of another one.
        _remove_configurations(temporary, target)
        for name in dropped:
            if not (temporary / name).exists():
                (target / name).unlink(missing_ok=True)
        for folder_of_files in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
            _move(folder_of_files, target / folder_of_files.relative_to(temporary))
    finally:
        shutil.rmtree(outer, ignore_errors=True)


def _check_replaced(path: Path) -> None:
    if os.path.lexists(path):
        check_output_file(path)


def _files_of(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.is_file()]


def _remove_configurations(source: Path, target: Path) -> None:
    """Removes the files of a folder without which nothing is loaded, if those of another one take their place."""
    names = _files_of(source)
    for name in _CONFIGURATIONS:
        # An adapter belongs to the base model beside it, so it does not stay with another one.
        if name in names or "config.json" in names:
            (target / name).unlink(missing_ok=True)


def _move(source: Path, target: Path) -> None:
    """Moves the files of one folder, those without which nothing is loaded last."""
    target.mkdir(exist_ok=True)
    names = _files_of(source)
    is_base_model = "config.json" in names
    _remove_configurations(source, target)
    weights = [name for name in names if _WEIGHTS.fullmatch(name)]
    kinds = {name.startswith("adapter_") for name in weights} | ({True} if is_base_model else set())
    for path in list(target.iterdir()):
        # Shards of an older checkpoint with another number of shards, and an adapter of an older base model.
        is_weights = _WEIGHTS.fullmatch(path.name) is not None and path.name.startswith("adapter_") in kinds
        if is_weights and path.name not in weights:
            path.unlink()
    configurations = [name for name in reversed(_CONFIGURATIONS) if name in names]
    for name in (*(name for name in names if name not in configurations), *configurations):
        os.replace(source / name, target / name)
