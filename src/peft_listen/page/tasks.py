"""The tasks of the page's buttons, and clips to pick, from a data file."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..audio import is_url
from ..data import Example, read_examples
from ..data.recipes.wordings import WORDINGS
from ..pipelines import DEFAULT_INSTRUCTION


# Instructions for models whose data file is not given.
GENERAL_INSTRUCTIONS = {
    "describe": DEFAULT_INSTRUCTION,
    "transcribe": WORDINGS["asr"][0],
    "translate": WORDINGS["en2zh"][0],
    "emotion": WORDINGS["er"][0],
}

_MAX_TASKS = 12
_CLIPS_PER_TASK = 5


@dataclass(frozen=True)
class Clip:
    """
    A clip of the data file.

    Attributes:
        name (`str`): what the list of clips shows: its task and the name of its file, with as many folders as tell it from
            the other clips of the task.
        path (`str`): its file.
        instruction (`str`): its instruction.
        answer (`str`): its correct answer.
    """

    name: str
    path: str
    instruction: str
    answer: str


@dataclass(frozen=True)
class Tasks:
    """
    What the page offers to ask.

    Attributes:
        instructions (`dict[str, str]`): the instruction of each task.
        clips (`list[Clip]`): clips to pick.
    """

    instructions: dict[str, str]
    clips: list[Clip]


def read_tasks(path: str | os.PathLike[str]) -> Tasks:
    """
    Reads the tasks of a data file.

    Args:
        path (`str` or `os.PathLike`): data file, as [`~peft_listen.data.read_examples`] reads it.

    Returns:
        [`Tasks`]: of each of the twelve most frequent tasks, the most frequent instruction and the first five clips that are
        files of this machine.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line of it is not valid.
    """
    examples = read_examples(path)
    frequent = Counter(example["task"] for example in examples).most_common(_MAX_TASKS)
    instructions, clips = {}, []
    for task, _ in frequent:
        rows = [example for example in examples if example["task"] == task]
        ((instructions[task], _),) = Counter(row["instruction"] for row in rows).most_common(1)
        clips += _clips_of(task, rows)
    return Tasks(instructions, clips)


def _clips_of(task: str, rows: Sequence[Example]) -> list[Clip]:
    found: dict[str, Example] = {}
    for row in rows:
        path = row["audio"]
        if isinstance(path, list) or path is None or is_url(path) or not os.path.isfile(path):
            continue
        found.setdefault(os.path.abspath(path), row)
        if len(found) == _CLIPS_PER_TASK:
            break
    return [
        Clip(f"{task} · {name}", path, row["instruction"], row["answer"])
        for name, (path, row) in zip(_shortest_names(list(found)), found.items(), strict=True)
    ]


def _shortest_names(paths: Sequence[str]) -> list[str]:
    """The names of some files, with as many of their folders as tell them apart."""
    parts = [Path(path).parts for path in paths]
    names = []
    for own in parts:
        length = next(n for n in range(1, len(own) + 1) if sum(other[-n:] == own[-n:] for other in parts) == 1)
        names.append(os.path.join(*own[-length:]))
    return names
