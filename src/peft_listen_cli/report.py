"""`peft-listen report`: writes an HTML page about the prompts that an adapter selects for each task."""

from __future__ import annotations

import argparse
import dataclasses
import os
from typing import TYPE_CHECKING

from .argument_types import positive_integer


if TYPE_CHECKING:
    from peft_listen.analysis import NearestWords, SelectionRecords
    from peft_listen.data import Prediction


HELP = "Report which prompts an adapter selects for each task, as one HTML page."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="selections written by --save-records, or the folder or Hub name of an adapter")
    parser.add_argument("data", nargs="?", help="for an adapter: the data file to select prompts for")
    parser.add_argument("-o", "--output", default="report.html", help="path of the page (default: report.html)")
    parser.add_argument("--save-records", metavar="FILE", help="also save the selections, for further reports")
    parser.add_argument(
        "--predictions",
        metavar="FILE",
        help="answers of the model: the lines of the data file with the field `generated`, to compare with chance",
    )
    parser.add_argument("--title", help="heading of the page (default: the name of the source)")
    parser.add_argument(
        "--top",
        type=positive_integer,
        default=10,
        metavar="N",
        help="compare the N most selected prompts of each task (default: 10)",
    )
    parser.add_argument(
        "--projection",
        choices=["pca", "umap"],
        default="pca",
        help="projection of the map (default: pca; umap needs umap-learn)",
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=8, metavar="N", help="number of rows in a batch (default: 8)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.analysis import format_summary, save_report
    from peft_listen.data import read_predictions
    from peft_listen.files import check_output_file

    for path in filter(None, (arguments.output, arguments.save_records)):
        check_output_file(path)
    predictions = read_predictions(arguments.predictions) if arguments.predictions else []
    records, words = _records(arguments, predictions)
    if arguments.save_records:
        records.save(arguments.save_records)
    title = arguments.title or f"Prompts of {_name(arguments.source)}"
    summary = save_report(
        records,
        arguments.output,
        title=title,
        top=arguments.top,
        projection=arguments.projection,
        predictions=predictions,
        words=words,
    )
    print(format_summary(summary))
    print(f"Wrote {arguments.output}")
    return 0


def _name(source: str) -> str:
    from peft_listen.run_folder import display_name

    return os.path.basename(display_name(source))


def _records(
    arguments: argparse.Namespace, predictions: list[Prediction]
) -> tuple[SelectionRecords, NearestWords | None]:
    """The selections, and the words near the prompts if the source is an adapter: their file has no vocabulary."""
    from peft_listen.analysis import SelectionRecords, nearest_words, record_dataset, score_answers
    from peft_listen.data import read_examples
    from peft_listen.run_folder import read_run_settings

    if os.path.isfile(arguments.source):
        if arguments.data is not None:
            raise ValueError(
                f"{arguments.source} is a file of selections, which already contains the results for its data. Leave "
                f"out {arguments.data}, or name an adapter instead of the file."
            )
        return SelectionRecords.load(arguments.source), None
    from peft_listen.pipelines.loading import check_model_name, load_pipeline

    if arguments.data is None:
        check_model_name(arguments.source)
        raise ValueError(
            f"{arguments.source} is not a file of selections. If it is an adapter, also name the data file to select "
            "prompts for; if it should be such a file, check the path."
        )

    # The files are checked first, since loading and running the model may take minutes.
    examples = read_examples(arguments.data)
    score_answers(predictions, {example["task"] for example in examples})
    pipe = load_pipeline(arguments.source, accepts_text_models=True)
    records = record_dataset(pipe, examples, batch_size=arguments.batch_size, show_progress=True)
    settings = read_run_settings(arguments.source)
    if "init_keys_at_steps" in settings:
        # What the training did is not in the adapter's configuration, and is not to be advised.
        config = {**records.config, "init_keys_at_steps": settings["init_keys_at_steps"]}
        records = dataclasses.replace(records, config=config)
    return records, nearest_words(pipe, records)
