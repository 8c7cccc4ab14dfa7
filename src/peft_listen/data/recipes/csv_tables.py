"""Clips and tables of one's own."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .base import Item, Recipe, register_recipe
from .source import Skipped, SourceFolder
from .wordings import QUESTION


COLUMNS = ("audio", "instruction", "answer", "task")
SPLIT = "split"
_ENDING = ".csv"

# A split is a part of the name of its data file.
_SPLIT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


@register_recipe("csv")
class CsvTables(Recipe):
    """
    A folder of one's own with clips, and with tables of questions about them in CSV files.

    A table has a header with the columns `audio` (path of a clip in the folder), `instruction`, `answer` and `task`; others are
    ignored. The rows of a table with the column `split` belong to the split that it names, those of a table without it to a split
    with the name of the file: `train.csv` and `test.csv` need no such column.
    """

    title = "Your own clips"
    task = "that of the column `task`"
    wordings = (QUESTION,)
    metrics = ()
    layout = """\
clips.csv                        (audio,instruction,answer,task,split; or train.csv and test.csv without the column split)
recordings/dog-1.wav             (the path in the column audio is recordings/dog-1.wav)"""

    def splits(self, source: SourceFolder) -> dict[str, bool]:
        tables = _tables(source)
        if not tables:
            raise ValueError(
                f"There is no CSV file in {source.root}.{source.link_advice()} {self.title} need a table whose name ends in "
                f"{_ENDING}. Expected:\n{self.layout}"
            )
        rows = [(split, row) for table in tables for _, split, row in _rows_of(source, table)]
        names = sorted({split for split, _ in rows if split is not None})
        problem = next((row for _, row in rows if isinstance(row, Skipped)), None)
        if problem is not None and not names:
            raise ValueError(f"{source.root}: no row of the tables has a split. {problem.row}: {problem.reason}.")
        if not names:
            raise ValueError(f"{source.path(tables[0])} has no rows below its header. Expected:\n{self.layout}")
        return dict.fromkeys(names, True)

    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        for table in _tables(source):
            for name, of_row, row in _rows_of(source, table):
                # A row without a split may belong to each of them.
                if of_row in (split, None):
                    yield row if isinstance(row, Skipped) else _to_item(name, row)


def _tables(source: SourceFolder) -> list[str]:
    # Some programs write the ending in capitals.
    return [name for name in source.files("") if name.lower().endswith(_ENDING)]


def _rows_of(source: SourceFolder, table: str) -> Iterator[tuple[str, str | None, dict[str, str] | Skipped]]:
    """The rows of a table with their names and their splits, which damaged rows of a table with several do not have."""
    has_splits = SPLIT in source.columns(table, ",")
    file_split = None if has_splits else table[: -len(_ENDING)]
    for name, row in source.table(table, COLUMNS, ",", quoted=True, optional=(SPLIT,)):
        if file_split is not None and not _SPLIT_NAME.fullmatch(file_split):
            raise ValueError(
                f"{source.path(table)} has no column {SPLIT!r}, so its name is that of a split, which has at most "
                "64 letters, digits, '_' and '-'. Rename it, or add the column."
            )
        split = file_split
        if has_splits and not isinstance(row, Skipped):
            split = row[SPLIT].strip()
            if not _SPLIT_NAME.fullmatch(split):
                split = None
                row = Skipped("the column split is not a name of at most 64 letters, digits, '_' and '-'", name)
        yield name, split, row


def _to_item(name: str, row: dict[str, str]) -> Item | Skipped:
    row = {column: text.strip() for column, text in row.items()}
    if empty := [column for column in COLUMNS if not row[column]]:
        return Skipped(f"the column {empty[0]} is empty", name)
    return Item(name, row["answer"], (row["audio"],), question=row["instruction"], task=row["task"])
