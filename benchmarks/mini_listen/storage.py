"""Stored runs: one JSON file per run, found by its settings.

A file is named `<group>--<label>--seed<N>.json` for readers. A run is identified by the settings inside the file: the
same run may belong to several groups of experiments, and is stored once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from peft_listen.analysis import SelectionRecords
from peft_listen.files import atomic_path

from .settings import RunSettings


# Each form has a folder in it.
RESULTS = Path(__file__).parent / "results"

# The test split on which the runs of a folder were evaluated: one JSON object per line, in the order of the stored answers.
TEST_EXAMPLES = "test_examples.jsonl"

# The content of one result file: settings, versions, scores, losses, selections, training log and answers.
Run = dict[str, Any]

# Result files are read by people: containers of scalars that fit into this many characters take one line.
MAX_LINE_LENGTH = 300


def read_results(folder: Path) -> dict[str, Run]:
    """
    Reads all stored runs of a folder.

    Args:
        folder (`Path`): folder of result files; it need not exist.

    Returns:
        `dict[str, dict]`: the runs by [`RunSettings.name`] of their settings.
    """
    runs = (json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json")))
    return {RunSettings(**run["settings"]).name: run for run in runs}


def write_result(folder: Path, file_name: str, run: Run, selections: SelectionRecords | None = None) -> Path:
    """
    Writes the result of a run, and its selections to a second file, which git ignores.

    Args:
        folder (`Path`): folder of result files; created if missing.
        file_name (`str`): name of the JSON file, see [`result_file_name`].
        run (`dict`): content of the file.
        selections ([`SelectionRecords`], *optional*): queries, keys and selected prompts of the test examples, the input of
            `peft-listen report`.

    Returns:
        `Path`: the JSON file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name
    if selections is not None:
        selections.save(selections_path(path))
    with atomic_path(path) as temporary:
        temporary.write_text(to_json(run) + "\n", encoding="utf-8")
    return path


def selections_path(result_path: Path) -> Path:
    """Path of the file with a run's selections, next to its JSON file."""
    return result_path.with_suffix(".safetensors")


def result_file_name(group: str, label: str, settings: RunSettings, with_hash: bool = False) -> str:
    """
    Name of a run's result file.

    Args:
        group (`str`): group of experiments.
        label (`str`): label of the experiment in the group's table.
        settings ([`RunSettings`]): settings of the run.
        with_hash (`bool`, defaults to `False`): append the hash of the settings, for runs whose steps, batch size or
            precision differ from those of the form.

    Returns:
        `str`: `<group>--<label>--seed<N>.json`, in lower case and without special characters.
    """
    slug = re.sub(r"[^\w.]+", "-", label.lower().replace("'", "")).strip("-")
    suffix = f"--{settings.hash}" if with_hash else ""
    return f"{group}--{slug}--seed{settings.seed}{suffix}.json"


def write_test_examples(folder: Path, examples: Iterable[dict[str, Any]]) -> None:
    """
    Writes the test examples of the runs of a folder, or checks that they are those that its runs were evaluated on.

    Args:
        folder (`Path`): folder of result files; created if missing.
        examples (`Iterable[dict]`): test examples.

    Raises:
        ValueError: if the folder has other test examples.
    """
    names = ("instruction", "answer", "task")
    rows = [
        {"clip": "/".join(Path(example["audio"]).parts[-2:]), **{name: example[name] for name in names}}
        for example in examples
    ]
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folder / TEST_EXAMPLES
    if path.is_file():
        if path.read_text(encoding="utf-8") != content:
            raise ValueError(
                f"The runs in {folder} were evaluated on other test examples, those in {path.name}: the data were made by "
                "another version of the benchmark. Store the new runs in another folder with `--results FOLDER`."
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(content, encoding="utf-8")


def answers_by_task(examples: Iterable[dict[str, Any]], answers: Iterable[str]) -> dict[str, list[str]]:
    """The generated answers of each task, in the order of the examples."""
    by_task: dict[str, list[str]] = {}
    for example, answer in zip(examples, answers, strict=True):
        by_task.setdefault(example["task"], []).append(answer)
    return by_task


def to_json(value: Any, indent: int = 0) -> str:
    """Indented JSON in which a short list or object of scalars takes one line."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    line = json.dumps(value, ensure_ascii=False)
    nested = any(isinstance(child, dict | list) for child in children)
    if not children or (not nested and len(line) <= MAX_LINE_LENGTH):
        return line
    names = [f"{json.dumps(name, ensure_ascii=False)}: " for name in value] if isinstance(value, dict) else None
    items = [to_json(child, indent + 1) for child in children]
    rows = [name + item for name, item in zip(names, items, strict=True)] if names else items
    opening, closing = ("{", "}") if names else ("[", "]")
    separator = ",\n" + " " * (indent + 1)
    return f"{opening}\n{' ' * (indent + 1)}{separator.join(rows)}\n{' ' * indent}{closing}"
