"""Writes data files from a data set in its published form, and reports which rows were skipped and why."""

from __future__ import annotations

import heapq
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ...audio import is_url
from ...chat import AUDIO_TOKEN
from ...files import atomic_path
from ...hub_names import is_repository_name
from ..schema import clip_problem, example_problem
from .base import Item, Recipe, get_recipe
from .clips import ClipFolder, UnusableClipError
from .source import Skipped, SourceFolder
from .wordings import QUESTION, WORDINGS, choose_wordings, draw_number, draw_wording


if TYPE_CHECKING:
    from datasets import Dataset

# Rows that a report names for each reason.
_MAX_NAMES = 3


@dataclass
class Reason:
    """
    Why rows were not written.

    Attributes:
        count (`int`): number of rows.
        by_rule (`bool`): whether the recipe leaves such rows out on purpose.
        rows (`list[str]`): names of the first three.
    """

    count: int = 0
    by_rule: bool = False
    rows: list[str] = field(default_factory=list)


@dataclass
class PreparedSplit:
    """
    What [`prepare`] wrote for one split.

    Attributes:
        recipe (`str`): name of the recipe.
        split (`str`): the split.
        path (`str`): the data file.
        num_rows (`int`): rows in it.
        num_not_drawn (`int`): rows that `max_rows` left out.
        skipped (`dict[str, Reason]`): the rows that were not written, by reason, the most frequent first.
    """

    recipe: str
    split: str
    path: str
    num_rows: int = 0
    num_not_drawn: int = 0
    skipped: dict[str, Reason] = field(default_factory=dict)

    @property
    def num_problems(self) -> int:
        """Rows that are damaged or whose clip is missing."""
        return sum(reason.count for reason in self.skipped.values() if not reason.by_rule)

    def add(self, skipped: Skipped) -> None:
        """Counts a row that is not written."""
        reason = self.skipped.setdefault(skipped.reason, Reason(by_rule=skipped.by_rule))
        reason.count += 1
        if len(reason.rows) < _MAX_NAMES:
            reason.rows.append(skipped.row)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self)


def prepare(
    recipe: str | Recipe,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    splits: Sequence[str] | None = None,
    wordings: str = "all",
    seed: int = 0,
    max_rows: int | None = None,
    check_clips: bool = False,
    follow_links: bool = False,
    show_progress: bool = False,
) -> list[PreparedSplit]:
    """
    Writes data files from the folder of a data set in its published layout.

    For each split, `OUTPUT/RECIPE-SPLIT.jsonl` is written, or replaced, when it is complete. Its rows have the fields of
    [`~peft_listen.data.Example`], the row's published `id`, `hub_dataset` if the data set is on the Hub, and `references`
    if there are several correct answers. The clips stay where they are; only those that are joined from several are
    written, to `OUTPUT/RECIPE-clips`.

    A row whose clip is missing or that is damaged is skipped and counted.

    Args:
        recipe (`str` or [`Recipe`]): name of a recipe, see [`available_recipes`].
        source (`str` or `os.PathLike`): folder of the data set.
        output (`str` or `os.PathLike`): folder of the data files; created if it is missing.
        splits (`Sequence[str]`, *optional*): the published splits to write. By default all whose files are there.
        wordings (`str`, defaults to `"all"`): `"all"` draws one of the recipe's wordings of the instruction for each row;
            `"first"` uses one wording; otherwise the path of a text file with one wording per line.
        seed (`int`, defaults to 0): seed of the wordings, of `max_rows`, and of pairs that a recipe draws.
        max_rows (`int`, *optional*): most rows of a split; they are drawn at random and keep their order.
        check_clips (`bool`, defaults to `False`): whether to decode each clip, and to skip those that cannot be read or are
            silent. Otherwise only missing and empty files are skipped.
        follow_links (`bool`, defaults to `False`): whether symbolic links inside `source` may lead out of it.
        show_progress (`bool`, defaults to `False`): whether to show a progress bar on stderr.

    Returns:
        `list[PreparedSplit]`: what was written, for each split.

    Raises:
        OSError: if the source cannot be read or a file not written.
        ValueError: if the folder is not the data set in its published layout (the message names the files that are
            expected), a split is unknown or its files are missing, no row of a split can be used, or an argument is
            invalid.
    """
    recipe, folder = _checked(recipe, output, max_rows)
    chosen = choose_wordings(_wordings(recipe), wordings)
    files = SourceFolder(source, follow_links)
    names = _choose_splits(recipe, files, splits)
    clips = ClipFolder(folder / f"{recipe.name}-clips")

    def audio_of(item: Item, _: int) -> Path:
        paths = [files.path(clip) for clip in item.clips]
        return paths[0] if len(paths) == 1 else clips.join("-".join(map(_stem, item.clips[:2])), paths, item.pause)

    def usable(row: Item | Skipped) -> Item | Skipped:
        if isinstance(row, Skipped):
            return row
        problems = (files.clip_problem(clip) for clip in row.clips)
        problem = next((each for each in problems if each is not None), None)
        return row if problem is None else Skipped(problem, row.id)

    reports = []
    for split in names:
        rows = enumerate(map(usable, recipe.rows(files, split, seed)))
        writer = _SplitWriter(recipe, split, folder, chosen, seed, max_rows, check_clips, show_progress)
        reports.append(writer.write(rows, audio_of))
    return reports


def prepare_dataset(
    recipe: str | Recipe,
    dataset: Dataset,
    output: str | os.PathLike[str],
    *,
    split: str,
    wordings: str = "all",
    seed: int = 0,
    max_rows: int | None = None,
    check_clips: bool = False,
    show_progress: bool = False,
) -> PreparedSplit:
    """
    Writes a data file from a `datasets.Dataset` with the columns that the data set has on the Hub.

    The audio is written as it is encoded, without decoding it, to `OUTPUT/RECIPE-clips`.

    Args:
        recipe (`str` or [`Recipe`]): name of a recipe.
        dataset (`datasets.Dataset`): one split, such as `load_dataset("openslr/librispeech_asr", "clean", split="test")`.
        output (`str` or `os.PathLike`): folder of the data file; created if it is missing.
        split (`str`): name of the split, for the name of the data file: `OUTPUT/RECIPE-SPLIT.jsonl`.
        wordings, seed, max_rows, check_clips, show_progress: see [`prepare`].

    Returns:
        [`PreparedSplit`]: what was written.

    Raises:
        OSError: if a file cannot be written.
        NotImplementedError: if the data set is not published with its audio on the Hub.
        ValueError: if the dataset has not the expected columns, no row can be used, or an argument is invalid.
        ImportError: if `datasets` is not installed.
    """
    try:
        from datasets import Audio, ClassLabel
        from datasets import Dataset as DatasetType
    except ImportError as error:
        raise ImportError('Datasets of the Hub need datasets: pip install "peft-listen[train]"') from error
    recipe, folder = _checked(recipe, output, max_rows)
    if recipe.hub is None:
        recipe.from_hub({})
    chosen = choose_wordings(_wordings(recipe), wordings)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", split):
        raise ValueError(f"`split` must have letters, digits, '_', '.' and '-' only, got {split!r}.")
    if not isinstance(dataset, DatasetType):
        raise ValueError(
            f"Expected a `datasets.Dataset`, got a {type(dataset).__name__}. Load one split: "
            "`load_dataset(name, configuration, split=...)`, without streaming."
        )
    needed = (*recipe.hub_columns, recipe.hub_audio)
    if missing := [name for name in needed if name not in dataset.column_names]:
        raise ValueError(
            f"The columns {missing} are missing; the dataset has {dataset.column_names}. Expected those of {recipe.hub}: "
            f"{', '.join(needed)}."
        )
    if isinstance(dataset.features[recipe.hub_audio], Audio):
        dataset = dataset.cast_column(recipe.hub_audio, Audio(decode=False))
    texts = dataset.select_columns(list(recipe.hub_columns))
    labels = {name: feature for name, feature in texts.features.items() if isinstance(feature, ClassLabel)}
    clips = ClipFolder(folder / f"{recipe.name}-clips")

    def rows() -> Iterator[dict[str, Any]]:
        for row in texts:
            yield {name: labels[name].int2str(value) if name in labels else value for name, value in row.items()}

    def checked(row: dict[str, Any]) -> dict[str, Any]:
        return {name: "" if value is None else value for name, value in row.items()}

    writer = _SplitWriter(recipe, split, folder, chosen, seed, max_rows, check_clips, show_progress)
    return writer.write(
        recipe.rows_from_hub(map(checked, rows()), split),
        lambda item, index: clips.store(item.id, dataset[index][recipe.hub_audio]),
    )


class _SplitWriter:
    """Writes the data file of one split."""

    def __init__(
        self,
        recipe: Recipe,
        split: str,
        folder: Path,
        wordings: tuple[str, ...],
        seed: int,
        max_rows: int | None,
        check_clips: bool,
        show_progress: bool,
    ) -> None:
        self.recipe, self.split, self.folder = recipe, split, folder
        self.wordings, self.seed = wordings, seed
        self.max_rows, self.check_clips, self.show_progress = max_rows, check_clips, show_progress
        self.path = folder / f"{recipe.name}-{split}.jsonl"
        self.report = PreparedSplit(recipe.name, split, str(self.path))

    def write(
        self, rows: Iterable[tuple[int, Item | Skipped]], audio_of: Callable[[Item, int], Path]
    ) -> PreparedSplit:
        """
        Writes the rows; `audio_of(item, index)` finds or writes the clip of a row.
        """
        drawn = self._draw(self._items(rows))
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.path) as temporary, open(temporary, "w", encoding="utf-8") as file:
            progress = tqdm(drawn, desc=f"Writing {self.path.name}", unit="row", disable=not self.show_progress)
            for index, item in progress:
                line = self._line(item, index, audio_of)
                if isinstance(line, Skipped):
                    self.report.add(line)
                else:
                    file.write(f"{line}\n")
                    self.report.num_rows += 1
            self._sort_reasons()
            if self.report.num_rows == 0:
                reasons = "; ".join(f"{reason.count} rows: {text}" for text, reason in self.report.skipped.items())
                raise ValueError(
                    f"{self.recipe.title}, split {self.split!r}: no row can be used, so {self.path} is not written. "
                    f"{reasons or 'Its lists are empty'}. Expected:\n{self.recipe.layout}"
                )
        return self.report

    def _items(self, rows: Iterable[tuple[int, Item | Skipped]]) -> Iterator[tuple[int, Item]]:
        """Counts and drops the rows that cannot be used."""
        seen: set[str] = set()
        for index, row in tqdm(rows, desc=f"Reading {self.split}", unit="row", disable=not self.show_progress):
            if isinstance(row, Skipped):
                self.report.add(row)
            elif row.id in seen:
                self.report.add(Skipped("the id occurs more than once", row.id))
            else:
                seen.add(row.id)
                yield index, row

    def _draw(self, items: Iterator[tuple[int, Item]]) -> list[tuple[int, Item]]:
        if self.max_rows is None:
            return list(items)
        count = 0

        def numbered() -> Iterator[tuple[int, int, tuple[int, Item]]]:
            nonlocal count
            for position, pair in enumerate(items):
                count += 1
                yield draw_number(self.seed, self.recipe.name, self.split, pair[1].id, "row"), position, pair

        # The rows with the smallest drawn numbers: a row is chosen or not whatever the order of the others.
        kept = sorted(heapq.nsmallest(self.max_rows, numbered()), key=lambda each: each[1])
        self.report.num_not_drawn = count - len(kept)
        return [pair for _, _, pair in kept]

    def _line(self, item: Item, index: int, audio_of: Callable[[Item, int], Path]) -> str | Skipped:
        wording = draw_wording(self.wordings, self.seed, self.recipe.name, self.split, item.id)
        row: dict[str, Any] = {
            "audio": "",
            "instruction": wording if item.question is None else wording.replace(QUESTION, item.question),
            "answer": item.answer,
            "task": self.recipe.task if item.task is None else item.task,
            "id": item.id,
        }
        if is_repository_name(self.recipe.hub):
            row["hub_dataset"] = self.recipe.hub
        if item.references:
            row["references"] = list(item.references)
        if any(AUDIO_TOKEN in row[name] for name in ("instruction", "answer")):
            return Skipped(f"the text contains the audio token {AUDIO_TOKEN}", item.id)
        try:
            clip = audio_of(item, index)
        except UnusableClipError as error:
            return Skipped("the clip cannot be read", f"{item.id} ({error})")
        row["audio"] = self._address(clip)
        if problem := example_problem(row):
            return Skipped("the row is not a valid example", f"{item.id} ({problem})")
        if self.check_clips and (problem := clip_problem(os.fspath(clip))):
            return Skipped("the clip cannot be read or is silent", f"{item.id} ({problem})")
        line = json.dumps(row, ensure_ascii=False)
        try:
            line.encode()
        except UnicodeEncodeError:  # a path that is not UTF-8
            line = json.dumps(row)
        return line

    def _address(self, clip: Path) -> str:
        """Relative to the data file for clips in its folder, so that the folder can be moved; absolute for others."""
        folder = self.folder.resolve()
        if clip.is_relative_to(folder):
            relative = clip.relative_to(folder).as_posix()
            return os.fspath(clip) if is_url(relative) else relative
        return os.fspath(clip)

    def _sort_reasons(self) -> None:
        by_count = sorted(self.report.skipped.items(), key=lambda each: (-each[1].count, each[0]))
        self.report.skipped = dict(by_count)


def _checked(recipe: str | Recipe, output: str | os.PathLike[str], max_rows: int | None) -> tuple[Recipe, Path]:
    recipe = get_recipe(recipe) if isinstance(recipe, str) else recipe
    if not isinstance(recipe, Recipe):
        raise ValueError(f"`recipe` must be the name of a recipe or a `Recipe`, got {recipe!r}.")
    if max_rows is not None and (not isinstance(max_rows, int) or isinstance(max_rows, bool) or max_rows < 1):
        raise ValueError(f"`max_rows` must be an integer of at least 1, got {max_rows!r}.")
    folder = Path(output).absolute()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; expected a folder, in which the data files are written.")
    return recipe, folder.resolve()


def _wordings(recipe: Recipe) -> tuple[str, ...]:
    wordings = recipe.wordings or WORDINGS.get(recipe.task, ())
    if not wordings:
        raise ValueError(
            f"The recipe {recipe.name!r} has no wordings, and its task {recipe.task!r} is none of {sorted(WORDINGS)}. Set "
            "`wordings` in its class."
        )
    return wordings


def _choose_splits(recipe: Recipe, source: SourceFolder, splits: Sequence[str] | None) -> list[str]:
    published = recipe.splits(source)
    found = [split for split, is_there in published.items() if is_there]
    if splits is None:
        if not found:
            raise ValueError(
                f"{source.root} is not {recipe.title} in its published layout: the files of none of its splits "
                f"({', '.join(published)}) are there.{source.link_advice()} Expected:\n{recipe.layout}"
            )
        return found
    chosen = list(dict.fromkeys([splits] if isinstance(splits, str) else splits))
    if unknown := [split for split in chosen if split not in published]:
        raise ValueError(f"{recipe.title}: there is no split {unknown[0]!r}; the splits are {', '.join(published)}.")
    if missing := [split for split in chosen if split not in found]:
        raise ValueError(
            f"{source.root} does not contain the files of the split {missing[0]!r} of {recipe.title}; those of "
            f"{', '.join(found) or 'none'} are there.{source.link_advice()} Expected:\n{recipe.layout}"
        )
    return chosen


def _stem(path: str) -> str:
    return "-".join(path.split("/")[-3:]).rpartition(".")[0]
