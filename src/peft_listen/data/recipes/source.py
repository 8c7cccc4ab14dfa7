"""The folder of a data set as somebody else published or copied it: nothing in it is trusted."""

from __future__ import annotations

import csv
import difflib
import errno
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any, BinaryIO


# Bytes of a line of a list beyond which it is not used: a file without line ends is not read into memory as a whole.
MAX_LIST_LINE_BYTES = 1 << 20

# Similarity, from 0 to 1, from which the name of a column counts as a misspelled one.
_NEAR_NAME = 0.8

_TABLE_ENDINGS = (".csv", ".tsv")

# What programs write between the columns of a table, with the names in messages.
_DELIMITERS = {",": "','", ";": "';'", "\t": "a tab", "|": "'|'"}

# Bytes of a JSON file, which is read as a whole. That of Spoken-SQuAD's training set has less than 64 MiB.
MAX_JSON_BYTES = 1 << 30


@dataclass(frozen=True)
class Skipped:
    """
    A row that is not written.

    Args:
        reason (`str`): why, in words that are the same for all rows with this problem; they are counted by it.
        row (`str`): name of the row, such as its id or its line.
        by_rule (`bool`, defaults to `False`): whether the recipe leaves such rows out on purpose, as a benchmark does that
            uses four of the classes. Otherwise the row is damaged or its clip is missing.
    """

    reason: str
    row: str
    by_rule: bool = False


class SourceFolder:
    """
    The folder of a data set. Paths in it are relative, with `/`, as they stand in lists.

    A path that leaves the folder is refused, and so is a symbolic link that leads out of it, unless `follow_links` is set.
    Folders are listed to a depth that the caller knows, so a link to a parent folder cannot lead in circles.

    Args:
        path (`str` or `os.PathLike`): the folder; it may itself be a symbolic link.
        follow_links (`bool`, defaults to `False`): whether symbolic links inside the folder may lead out of it.

    Attributes:
        refused_links (`list[str]`): the paths that were refused because of such a link.

    Raises:
        FileNotFoundError: if there is no such folder.
        NotADirectoryError: if the path is a file.
    """

    def __init__(self, path: str | os.PathLike[str], follow_links: bool = False) -> None:
        try:
            self.root = Path(path).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):
            raise FileNotFoundError(
                f"{os.fspath(path)}: there is no such folder (the working directory is {os.getcwd()}). Pass the folder of "
                "the data set."
            ) from None
        if not self.root.is_dir():
            is_table = self.root.suffix.lower() in _TABLE_ENDINGS
            advice = f"contains this file, {self.root.parent}" if is_table else "the data set was unpacked to"
            raise NotADirectoryError(f"{os.fspath(path)} is not a folder. Pass the folder that {advice}.")
        self.follow_links = follow_links
        self.refused_links: list[str] = []

    def clip_problem(self, relative: str) -> str | None:
        """
        Why a clip cannot be used, without decoding it.

        Args:
            relative (`str`): path of the clip.

        Returns:
            `str` or `None`: the reason, as in [`Skipped`]; `None` for a regular file with content.
        """
        try:
            status = os.stat(self._resolve(relative))
        except FileNotFoundError:
            return "the clip is missing"
        except OSError as error:
            return _describe(error)
        if not stat.S_ISREG(status.st_mode):
            return "the clip is not a regular file"
        return None if status.st_size else "the clip is empty (0 bytes)"

    def path(self, relative: str) -> Path:
        """Absolute path of a file or folder, which need not exist."""
        return self.root / relative

    def has(self, relative: str) -> bool:
        """Whether a file or folder exists inside the source folder."""
        try:
            self._resolve(relative)
        except OSError:
            return False
        return True

    def first(self, *candidates: str) -> str | None:
        """The first of these paths that exists, or `None`."""
        return next((each for each in candidates if self.has(each)), None)

    def folders(self, relative: str) -> list[str]:
        """Names of the folders in a folder, sorted. Hidden ones, such as those of macOS, are left out."""
        return self._names(relative, folders=True)

    def files(self, relative: str, suffix: str = "") -> list[str]:
        """Names of the files in a folder that end in `suffix`, sorted, without hidden ones; `[]` if there is no such folder."""
        return [name for name in self._names(relative, folders=False) if name.endswith(suffix)]

    def lines(self, relative: str) -> Iterator[tuple[str, str | Skipped]]:
        """
        Reads a list.

        Args:
            relative (`str`): path of the list, a text file in UTF-8.

        Yields:
            `tuple[str, str | Skipped]`: the name of each line that is not empty, and its text without the line end, or why
            it cannot be used: it is not UTF-8, or it is longer than 1 MiB.

        Raises:
            OSError: if the file cannot be read, or leads out of the source folder.
        """
        with self._open(relative) as file:
            number = 0
            while line := file.readline(MAX_LIST_LINE_BYTES + 1):
                number += 1
                name = f"{relative}, line {number}"
                if len(line) > MAX_LIST_LINE_BYTES:
                    while not line.endswith(b"\n") and (line := file.readline(MAX_LIST_LINE_BYTES)):
                        pass
                    yield name, Skipped("the line is longer than 1 MiB", name)
                    continue
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                try:
                    text = line.decode().rstrip("\r\n")
                except UnicodeDecodeError:
                    yield name, Skipped("the line is not UTF-8", name)
                    continue
                if text.strip():
                    yield name, text

    def columns(self, relative: str, delimiter: str) -> list[str]:
        """
        The columns in the header of a table; `[]` if it is empty.

        Args:
            relative (`str`): path of the table, see `table`.
            delimiter (`str`): `","` or a tab.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if its first line is not a header.
        """
        _, line = next(iter(self.lines(relative)), ("", ""))
        try:
            if isinstance(line, Skipped):
                raise ValueError(line.reason)
            fields = next(csv.reader([line], delimiter=delimiter), [])
        except (csv.Error, ValueError) as error:
            raise ValueError(
                f"{self.path(relative)}: the first line is not the header of a table ({error}). Save it as CSV in UTF-8, "
                "with one row per line."
            ) from None
        return [field.strip() for field in fields]

    def table(
        self, relative: str, columns: tuple[str, ...], delimiter: str, quoted: bool, optional: tuple[str, ...] = ()
    ) -> Iterator[tuple[str, dict[str, str] | Skipped]]:
        """
        Reads a table with a header.

        Args:
            relative (`str`): path of the table, a text file in UTF-8 with one row per line.
            columns (`tuple[str, ...]`): the columns that are needed, by their names in the header.
            delimiter (`str`): `","` or a tab.
            quoted (`bool`): whether fields may stand in quotation marks. Otherwise a backslash escapes a character.
            optional (`tuple[str, ...]`): columns that are read if the header has them.

        Yields:
            `tuple[str, dict | Skipped]`: the name of each row's line and its `columns` and those of the `optional`
                ones that it has, or why it cannot be used.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if a column is missing in the header, or one that looks like a misspelled optional column is there.
        """
        options: dict[str, Any] = {"delimiter": delimiter}
        options |= {} if quoted else {"quoting": csv.QUOTE_NONE, "escapechar": "\\"}
        header: list[str] | None = None
        for name, line in self.lines(relative):
            if isinstance(line, Skipped):
                yield name, line
                continue
            try:
                (fields,) = csv.reader([line], strict=True, **options)
            except (csv.Error, ValueError):
                if header is not None:
                    yield name, Skipped("the line is not a row of the table", name)
                    continue
                fields = line.split(delimiter)  # such as quoted names with another delimiter
            if header is None:
                header = [field.strip() for field in fields]
                if problem := _header_problem(header, line, columns, optional, delimiter):
                    raise ValueError(f"{self.path(relative)}: {problem}")
                columns += tuple(column for column in optional if column in header)
            elif len(fields) < len(header):
                yield name, Skipped("the line has fewer fields than the header", name)
            elif quoted and any(field.strip() for field in fields[len(header) :]):
                yield (
                    name,
                    Skipped("the line has more fields than the header; texts with a comma need quotation marks", name),
                )
            else:
                row = dict(zip(header, fields, strict=False))
                yield name, {column: row[column] for column in columns}

    def json(self, relative: str) -> Any:
        """
        Reads a JSON file.

        Raises:
            OSError: if the file cannot be read, or is larger than 1 GiB.
            ValueError: if it is not JSON in UTF-8.
        """
        with self._open(relative) as file:
            content = file.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise OSError(f"{self.path(relative)} is larger than {MAX_JSON_BYTES} bytes. Download the file again.")
        try:
            return json.loads(content.removeprefix(b"\xef\xbb\xbf").decode())
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.path(relative)} is not JSON in UTF-8 ({error}). Download the file again."
            ) from None

    def link_advice(self) -> str:
        """Sentence about the links that were refused, for error messages; empty if there were none."""
        if not self.refused_links:
            return ""
        return (
            f" The link {self.path(self.refused_links[0])} leads out of the folder and was not followed: pass "
            "`follow_links=True` (--follow-links) if you trust it."
        )

    def _names(self, relative: str, folders: bool) -> list[str]:
        try:
            with os.scandir(self._resolve(relative)) as entries:
                return sorted(
                    entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry) is folders
                )
        except (FileNotFoundError, NotADirectoryError):
            return []
        except PermissionError as error:
            raise PermissionError(f"{self.path(relative)}: {error.strerror}.{self.link_advice()}") from None

    def _open(self, relative: str) -> BinaryIO:
        try:
            path = self._resolve(relative)
        except PermissionError as error:
            raise PermissionError(f"{self.path(relative)}: {error.strerror}.{self.link_advice()}") from None
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise OSError(f"{self.path(relative)} is not a regular file. Download the data set again.")
        return open(path, "rb")

    def _resolve(self, relative: str) -> Path:
        """
        Raises an `OSError` for a path that does not exist or is not allowed.
        """
        if problem := _path_problem(relative):
            raise PermissionError(errno.EPERM, problem, relative)
        try:
            resolved = (self.root / relative).resolve(strict=True)
        except RuntimeError:  # a loop, before Python 3.13
            raise OSError(errno.ELOOP, "a symbolic link leads in a loop", relative) from None
        if not self.follow_links and not resolved.is_relative_to(self.root):
            self.refused_links.append(relative)
            raise PermissionError(errno.EPERM, "a symbolic link leads out of the source folder", relative)
        return resolved


def _header_problem(
    header: list[str], line: str, columns: tuple[str, ...], optional: tuple[str, ...], delimiter: str
) -> str | None:
    """What is wrong with the header of a table, and what to do; `None` if it has the columns."""
    missing = [column for column in columns if column not in header]
    others = {field.lower(): field for field in header if field not in (*columns, *optional)}
    near: dict[str, str] = {}
    for column in (*missing, *(column for column in optional if column not in header)):
        if found := difflib.get_close_matches(column, list(others), n=1, cutoff=_NEAR_NAME):
            near[column] = others.pop(found[0])
    if not missing and not near:
        return None
    shown = ", ".join(map(repr, header[:20]))
    if missing:
        form = (
            f"the column {missing[0]!r} is"
            if len(missing) == 1
            else f"the columns {', '.join(map(repr, missing))} are"
        )
        problem = f"{form} missing; the first line has {shown}."
    else:
        problem = f"the first line has {shown}."
    fields = {other: {field.strip().strip('"') for field in line.split(other)} for other in _DELIMITERS}
    used = next((other for other in _DELIMITERS if other != delimiter and fields[other].issuperset(columns)), None)
    if used is not None:
        problem += f" This file uses {_DELIMITERS[used]} between the columns: save it with {_DELIMITERS[delimiter]}."
    for column, field in near.items():
        problem += f" Rename {field!r} to {column!r}{'' if column in missing else ', or to something else'}."
    extra = f" ({_joined(optional)} {'is' if len(optional) == 1 else 'are'} optional)" if optional else ""
    return f"{problem} Expected the columns {_joined(columns)}{extra}, with {_DELIMITERS[delimiter]} between them."


def _joined(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _path_problem(relative: str) -> str | None:
    """Why a path in a list is not one inside the source folder, whatever the files are; `None` if it may be one."""
    if PurePosixPath(relative).is_absolute() or PureWindowsPath(relative).is_absolute():
        return "the path is absolute; write it relative to the source folder, such as clips/1.wav"
    if ".." in PurePosixPath(relative.replace("\\", "/")).parts:
        return "the path leaves the source folder"
    if "\\" in relative:
        return "the path has a backslash; write it with /, such as clips/1.wav"
    if "\0" in relative:
        return "the path has a NUL character"
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether an entry is a folder or a link to one; `None` for a link that leads in a loop."""
    try:
        return entry.is_dir()
    except OSError:
        return None


def _describe(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "a symbolic link leads in a loop"
    if error.errno == errno.ENOTDIR:
        return "the clip is missing"
    if error.errno == errno.EPERM:
        return error.strerror or "the path is not one inside the source folder"
    return f"the clip cannot be opened ({error.strerror})"
