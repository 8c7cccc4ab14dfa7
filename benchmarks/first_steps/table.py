"""Makes the tables from the stored runs, without the model.

    python -m benchmarks.first_steps.table [--results FOLDER] [--write docs/method.md]

`--write` replaces the text between the markers in a Markdown file.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.markdown import write_texts

from .forms import FORMS_OF_SPLIT, SEEDS_OF_SPLIT
from .storage import RESULTS, Run, read_run


# Names of the tables' markers in a Markdown file.
NAMES = {"test": "first steps", "tune": "trials"}


class Column(NamedTuple):
    """A column of a table: name of the measurement, heading, decimals and factor, and whether the spread is shown."""

    name: str
    heading: str
    digits: int = 2
    factor: float = 1
    with_spread: bool = True


COLUMNS = (
    Column("trained_accuracy", "accuracy, trained", 0, 100),
    Column("unseen_accuracy", "accuracy, unseen", 0, 100),
    Column("trained_loss", "loss, trained"),
    Column("unseen_loss", "loss, unseen"),
    Column("cost", "cost of a step / PromptTuning"),
    Column("peak_megabytes", "peak memory, MB", 0, with_spread=False),
)
# The trials decide by what a form learns.
COLUMNS_OF_SPLIT = {"test": COLUMNS, "tune": COLUMNS[:4]}


def spread(values: Iterable[float], digits: int) -> str:
    """Mean of some values, with the standard deviation if there are several."""
    values = list(values)
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"


def row(label: str, runs: Sequence[Run], columns: Sequence[Column]) -> list[str]:
    """The cells of one form."""
    measured = [run["measured"] for run in runs]
    cells = [label, str(len(runs)), f"{measured[0]['parameters']:,}".replace(",", " ")]
    for column in columns:
        values = [column.factor * one[column.name] for one in measured]
        cells.append(spread(values if column.with_spread else [statistics.fmean(values)], column.digits))
    return cells


def table(results: Path, split: str = "test") -> str:
    """
    Renders the table of all forms of a split with stored runs in Markdown.

    Args:
        results (`Path`): folder of the results.
        split (`str`, defaults to `"test"`): split of the sentences.

    Returns:
        `str`: one row per form.
    """
    columns = COLUMNS_OF_SPLIT[split]
    header = ["form", "seeds", "parameters", *(column.heading for column in columns)]
    rows = []
    for name, form in FORMS_OF_SPLIT[split].items():
        stored = (read_run(results, name, split, seed) for seed in SEEDS_OF_SPLIT[split])
        if runs := [run for run in stored if run is not None]:
            rows.append(row(form.label, runs, columns))
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|" + "---|" * len(header), *lines[1:]])


def tables(results: Path) -> dict[str, str]:
    """The tables of both splits, by the names of their markers."""
    return {name: table(results, split) for split, name in NAMES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--write", type=Path, help="Markdown file with markers, such as docs/method.md")
    arguments = parser.parse_args()
    texts = tables(arguments.results)
    print("\n\n".join(texts.values()))
    if arguments.write:
        write_texts(arguments.write, texts)


if __name__ == "__main__":
    main()
