"""Scores as a table and as files."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import atomic_path
from ..markdown import markdown_table
from ..metrics import TaskScore, mean_quality


_LIBRARIES = ("peft-listen", "torch", "transformers", "peft", "evaluate")


def format_scores(scores: Mapping[str, TaskScore]) -> str:
    """
    Formats scores as a Markdown table with one row for each metric, without counts.

    Args:
        scores (`Mapping[str, TaskScore]`): scores by the name of the task.

    Returns:
        `str`: the table; an arrow shows whether a higher or a lower value is better.
    """
    rows = []
    for task, score in scores.items():
        arrow = "higher" if score.higher_is_better else "lower"
        for name in score.shown_metrics:
            better = f" ({arrow} is better)" if name == score.metric else ""
            rows.append((task, score.counted_rows, f"{name}{better}", f"{score.values[name]:.4f}"))
    return markdown_table(("task", "rows", "metric", "value"), rows)


def save_scores(
    scores: Mapping[str, TaskScore], folder: str | os.PathLike[str], source: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """
    Writes `scores.json` and the table `scores.md`.

    Args:
        scores (`Mapping[str, TaskScore]`): scores by the name of the task.
        folder (`str` or `os.PathLike`): an existing folder.
        source (`Mapping[str, Any]`, *optional*): what was scored; values that JSON can represent.

    Returns:
        `dict[str, Any]`: the content of `scores.json`: `tasks` with the fields of [`~peft_listen.metrics.TaskScore`],
        `num_skipped` rows, `mean_quality`, the items of `source`, and `versions` of the libraries.

    Raises:
        OSError: if a file cannot be written.
    """
    result = {
        **(source or {}),
        "tasks": {task: dataclasses.asdict(score) for task, score in scores.items()},
        "num_skipped": sum(score.num_skipped for score in scores.values()),
        "mean_quality": mean_quality(scores),
        "versions": {name: importlib.metadata.version(name) for name in _LIBRARIES if _is_installed(name)},
    }
    contents = {"scores.json": json.dumps(result, indent=1) + "\n", "scores.md": format_scores(scores) + "\n"}
    for name, content in contents.items():
        with atomic_path(Path(folder) / name) as temporary:
            temporary.write_text(content, encoding="utf-8")
    return result


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
