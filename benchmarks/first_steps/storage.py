"""Stored runs: one JSON file per form, split and seed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .forms import FORMS_OF_SPLIT


RESULTS = Path(__file__).parent / "results"

# The content of one file: settings, measurements and versions.
Run = dict[str, Any]


def settings_of(name: str, split: str, seed: int) -> dict[str, Any]:
    """Everything that the result of a run depends on, apart from versions."""
    return {"form": name, "split": split, "seed": seed, **FORMS_OF_SPLIT[split][name].settings(seed)}


def result_path(folder: Path, name: str, split: str, seed: int) -> Path:
    """The file of a run."""
    return folder / f"{split}--{name}--seed{seed}.json"


def read_run(folder: Path, name: str, split: str, seed: int) -> Run | None:
    """The stored run of a form, or `None` if there is none with the form's present settings."""
    path = result_path(folder, name, split, seed)
    if not path.exists():
        return None
    stored: Run = json.loads(path.read_text(encoding="utf-8"))
    return stored if stored["settings"] == settings_of(name, split, seed) else None
