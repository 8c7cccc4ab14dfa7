"""What a recipe is, and the registry of recipes."""

from __future__ import annotations

import importlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

from .source import Skipped, SourceFolder


@dataclass(frozen=True)
class Item:
    """
    A row before its instruction is chosen and its clips are found.

    Args:
        id (`str`): name of the row, unique within its split. The wording of its instruction is drawn by it.
        answer (`str`): the correct answer.
        clips (`tuple[str, ...]`): paths of its clips in the source folder. Several clips are joined to one. Empty for a row
            of a `datasets.Dataset`, which has its audio in a column.
        question (`str`, *optional*): question about the clip, which replaces `{question}` in the wordings.
        references (`tuple[str, ...]`): all correct answers, if there are several.
        pause (`float`, defaults to 0.0): seconds of silence between clips that are joined.
        task (`str`, *optional*): name of its task, if it is not that of the recipe.
    """

    id: str
    answer: str
    clips: tuple[str, ...] = ()
    question: str | None = None
    references: tuple[str, ...] = field(default=())
    pause: float = 0.0
    task: str | None = None


class Recipe(ABC):
    """
    Maps one data set, in its published layout, to rows of a data file.

    A subclass describes the data set, what it changes and its sources in the docstring, sets the attributes below and
    implements `splits` and `rows`; with `hub_columns`, also `from_hub`.
    """

    name: ClassVar[str]
    """Name by which it is registered."""
    title: ClassVar[str]
    """Name of the data set."""
    task: ClassVar[str]
    """Name of the task of its rows."""
    wordings: ClassVar[tuple[str, ...]] = ()
    """Wordings of the instruction; if empty, those of [`WORDINGS`] for the task."""
    metrics: ClassVar[tuple[str, ...]]
    """Names of the metrics with which the task is scored, the usual one first."""
    license: ClassVar[str | None] = None
    """License of the data and where to ask for them; `None` for data of one's own."""
    layout: ClassVar[str]
    """The files that are expected in the source folder, as an indented tree."""
    hub: ClassVar[str | None] = None
    """The data set on the Hub whose columns `from_hub` reads; `None` if its audio is not published there."""
    hub_columns: ClassVar[tuple[str, ...]] = ()
    """Columns that `from_hub` needs, without that of the audio."""
    hub_audio: ClassVar[str] = "audio"
    """Column of the audio."""

    @abstractmethod
    def splits(self, source: SourceFolder) -> dict[str, bool]:
        """
        The published splits.

        Args:
            source ([`SourceFolder`]): the source folder.

        Returns:
            `dict[str, bool]`: for each split, whether its files are there.
        """

    @abstractmethod
    def rows(self, source: SourceFolder, split: str, seed: int) -> Iterator[Item | Skipped]:
        """
        The rows of a split, in the published order.

        Args:
            source ([`SourceFolder`]): the source folder.
            split (`str`): one of `splits` whose files are there.
            seed (`int`): seed of what is drawn, such as pairs of clips.

        Yields:
            `Item` or `Skipped`: each row, or why it cannot be used.
        """

    def from_hub(self, row: Mapping[str, Any]) -> Item | Skipped:
        """
        Maps a row with the columns of the Hub.

        Args:
            row (`Mapping`): the columns `hub_columns`; others are ignored.

        Returns:
            `Item` or `Skipped`: the row, or why it cannot be used.

        Raises:
            NotImplementedError: if the data set has no columns with audio on the Hub.
        """
        raise NotImplementedError(
            f"{self.title} is not published with its audio on the Hub. Prepare it from a folder with:\n{self.layout}"
        )

    def rows_from_hub(self, rows: Iterable[Mapping[str, Any]], split: str) -> Iterator[tuple[int, Item | Skipped]]:
        """
        Maps a dataset with the columns of the Hub, by default row by row.

        Args:
            rows (`Iterable[Mapping]`): its rows, with the columns `hub_columns`.
            split (`str`): name of its split.

        Yields:
            `tuple[int, Item | Skipped]`: index of the row that has the clip, and the result of `from_hub`.
        """
        for index, row in enumerate(rows):
            yield index, self.from_hub(row)


RecipeType = TypeVar("RecipeType", bound=type[Recipe])

# Modules of this package that are imported on first use.
_BUILT_IN = ("audiocaps", "covost2", "csv_tables", "iemocap", "librispeech", "librisqa", "spoken_squad", "voxceleb1")

_RECIPES: dict[str, type[Recipe]] = {}


def register_recipe(name: str) -> Callable[[RecipeType], RecipeType]:
    """
    Class decorator that makes a [`Recipe`] available as `get_recipe(name)` and to `peft-listen prepare`.

    Args:
        name (`str`): lower-case letters, digits and hyphens; it begins the names of the data files.

    Raises:
        ValueError: if the name has other characters, or another class is registered under it.
        TypeError: if the class is not a subclass of [`Recipe`].
    """

    def register(cls: RecipeType) -> RecipeType:
        if not (inspect.isclass(cls) and issubclass(cls, Recipe)):
            raise TypeError(f"A recipe must be a subclass of `Recipe`, got {cls!r}.")
        if not name or not set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-"):
            raise ValueError(f"The name of a recipe has lower-case letters, digits and hyphens, got {name!r}.")
        registered = _RECIPES.get(name)
        # A class defined again under the same qualified name (a re-run notebook cell) replaces itself.
        if registered is not None and registered.__qualname__ != cls.__qualname__:
            raise ValueError(
                f"The recipe name {name!r} is already used by {registered.__qualname__}; register {cls.__qualname__} under "
                "another name."
            )
        cls.name = name
        _RECIPES[name] = cls
        return cls

    return register


def available_recipes() -> list[str]:
    """Returns the names of all registered recipes, sorted."""
    for module in _BUILT_IN:
        importlib.import_module(f".{module}", __package__)
    return sorted(_RECIPES)


def get_recipe(name: str) -> Recipe:
    """
    Creates the recipe that is registered under `name`.

    Args:
        name (`str`): one of [`available_recipes`].

    Returns:
        [`Recipe`]: the recipe.

    Raises:
        ValueError: if no recipe has that name.

    ```python
    >>> from peft_listen.data.recipes import get_recipe
    >>> get_recipe("librispeech").task
    'asr'

    ```
    """
    names = available_recipes()
    if not isinstance(name, str) or name not in _RECIPES:
        raise ValueError(
            f"There is no recipe {name!r}; registered recipes: {', '.join(names)}. For clips of your own with a table take "
            "'csv'; in Python, add a recipe with `@register_recipe`."
        )
    return _RECIPES[name]()
