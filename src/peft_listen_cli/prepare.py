"""`peft-listen prepare`: writes data files from CSV files, or from a public data set in its published form."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from .argument_types import positive_integer


if TYPE_CHECKING:
    from peft_listen.data.recipes import PreparedSplit


HELP = (
    "Write data files (JSON lines) from clips and CSV files of your own, or from a public data set as it is published."
)
EPILOG = """\
For each split of the data set, OUTPUT/RECIPE-SPLIT.jsonl is written. The clips stay where they are; only clips that are
joined from several, or that come from a dataset of the Hub, are written to OUTPUT/RECIPE-clips.

  peft-listen prepare --list
  peft-listen prepare csv my-clips data
  peft-listen prepare librispeech /corpora/LibriSpeech data --split train-clean-100 --split test-clean
  peft-listen prepare librispeech openslr/librispeech_asr data --hub --config clean --split test

Rows that cannot be used are skipped and counted by reason. The exit code is 0 if none was skipped, except those that the
recipe leaves out by its rule; 1 if some were skipped because their clip is missing or their line is damaged, so that the
data files have the others; and 2 after an error, such as a folder that is not the data set.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of the recipe; --list shows them")
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="folder of the data set; with --hub, its Hub name")
    parser.add_argument(
        "output", nargs="?", metavar="OUTPUT", help="folder of the data files; created if it is missing"
    )
    parser.add_argument("--list", action="store_true", help="show the recipes, with task, files and license, and exit")
    parser.add_argument(
        "--split",
        action="append",
        metavar="NAME",
        help="a split to write; may be repeated (default: all that are there)",
    )
    parser.add_argument(
        "--wordings",
        default="all",
        metavar="all|first|FILE",
        help="draw one of several wordings of the instruction for each row, use one for all rows, or draw from the lines of "
        "a text file (default: all)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="seed of everything that is drawn (default: 0)"
    )
    parser.add_argument(
        "--max-rows", type=positive_integer, metavar="N", help="draw at most N rows of each split (default: all rows)"
    )
    parser.add_argument(
        "--check-clips", action="store_true", help="decode each clip, and skip those that are unreadable or silent"
    )
    parser.add_argument(
        "--follow-links", action="store_true", help="accept symbolic links in SOURCE that lead out of it"
    )
    parser.add_argument(
        "--hub",
        action="store_true",
        help="SOURCE is a dataset with the columns of the Hub: a Hub name, a folder of Parquet files, or one that "
        "save_to_disk wrote",
    )
    parser.add_argument("--config", metavar="NAME", help="with --hub: configuration of the dataset")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.data.recipes import prepare

    if arguments.list:
        _show_recipes()
        return 0
    if arguments.output is None:
        raise ValueError(
            "Name a recipe, the folder of the data set and the output folder: peft-listen prepare RECIPE SOURCE OUTPUT. "
            "peft-listen prepare --list shows the recipes."
        )
    options = {
        "wordings": arguments.wordings,
        "seed": arguments.seed,
        "max_rows": arguments.max_rows,
        "check_clips": arguments.check_clips,
        "show_progress": True,
    }
    if arguments.hub:
        reports = _prepare_hub(arguments, options)
    elif arguments.config is not None:
        raise ValueError("--config is the configuration of a dataset of the Hub: add --hub.")
    else:
        reports = prepare(
            arguments.recipe,
            arguments.source,
            arguments.output,
            splits=arguments.split,
            follow_links=arguments.follow_links,
            **options,
        )
    _show(reports, arguments.json)
    return 1 if any(report.num_problems for report in reports) else 0


def _prepare_hub(arguments: argparse.Namespace, options: dict) -> list[PreparedSplit]:
    from peft_listen.data.recipes import get_recipe, prepare_dataset

    recipe = get_recipe(arguments.recipe)
    if recipe.hub is None:
        raise ValueError(
            f"{recipe.title} is not published with its audio on the Hub. Prepare it from a folder, without --hub, with:\n"
            f"{recipe.layout}"
        )
    return [
        prepare_dataset(recipe, dataset, arguments.output, split=split, **options)
        for split, dataset in _load_splits(arguments).items()
    ]


def _load_splits(arguments: argparse.Namespace) -> dict:
    """The splits of a dataset by their names."""
    try:
        from datasets import Dataset, load_dataset, load_from_disk
        from datasets.exceptions import DatasetNotFoundError
    except ImportError as error:
        raise ImportError('--hub needs datasets: pip install "peft-listen[train]"') from error
    import os

    is_saved = any(
        os.path.isfile(os.path.join(arguments.source, name)) for name in ("dataset_dict.json", "dataset_info.json")
    ) and not any(name.endswith(".parquet") for name in os.listdir(arguments.source))
    try:
        loaded = load_from_disk(arguments.source) if is_saved else load_dataset(arguments.source, arguments.config)
    except (DatasetNotFoundError, ConnectionError) as error:
        raise OSError(f"The dataset {arguments.source!r} cannot be loaded. {error}") from error
    splits = {str(loaded.split or "all"): loaded} if isinstance(loaded, Dataset) else dict(loaded)
    if unknown := [name for name in arguments.split or () if name not in splits]:
        raise ValueError(f"{arguments.source} has no split {unknown[0]!r}; its splits are {', '.join(splits)}.")
    return {name: splits[name] for name in arguments.split or splits}


def _show_recipes() -> None:
    from peft_listen.data.recipes import available_recipes, get_recipe

    for name in available_recipes():
        recipe = get_recipe(name)
        scored = f", task {recipe.task!r}, scored by {', '.join(recipe.metrics)}" if recipe.metrics else ""
        print(f"{name}: {recipe.title}{scored}")
        if recipe.license is not None:
            print(f"  license: {recipe.license}")
        if recipe.hub is not None:
            print(f"  on the Hub (--hub): {recipe.hub}")
        print("  folder:")
        print("".join(f"    {line}\n" for line in recipe.layout.splitlines()))


def _show(reports: list[PreparedSplit], as_json: bool) -> None:
    from peft_listen.data.recipes import get_recipe

    if as_json:
        print(json.dumps([report.to_dict() for report in reports], indent=2))
        return
    for report in reports:
        print(f"Wrote {report.path}: {report.num_rows} rows")
        if report.num_not_drawn:
            print(f"  {report.num_not_drawn} rows were not drawn (--max-rows)")
        for text, reason in report.skipped.items():
            action = "left out by the recipe's rule" if reason.by_rule else "skipped"
            more = ", ..." if reason.count > len(reason.rows) else ""
            print(f"  {reason.count} {action}: {text} ({', '.join(reason.rows)}{more})")
    data_license = get_recipe(reports[0].recipe).license
    if data_license is not None:
        print(f"License of the data: {data_license}")
