"""`peft-listen report`: which prompts an adapter chooses for which task, as one HTML page."""

import argparse
import os

from ..analysis import SelectionRecords, format_summary, record_dataset, save_report
from ..data import read_examples
from ..files import check_output_file
from .argument_types import positive_integer
from .model_loading import load_pipeline


HELP = "Report which prompts an adapter chooses for which task, as one HTML page."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source", help="file of selections that --save-records has written, or folder or Hub name of an adapter"
    )
    parser.add_argument("data", nargs="?", help="for an adapter: the data file whose prompts it is to choose")
    parser.add_argument("-o", "--output", default="report.html", help="the page to write (default: report.html)")
    parser.add_argument("--save-records", metavar="FILE", help="also keep the selections, for further reports")
    parser.add_argument("--title", help="heading of the page (default: the name of the source)")
    parser.add_argument(
        "--top",
        type=positive_integer,
        default=10,
        metavar="N",
        help="compare the N prompts that each task chooses most (default: 10)",
    )
    parser.add_argument(
        "--projection", choices=["pca", "umap"], default="pca", help="of the map (default: pca; umap needs umap-learn)"
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=8, metavar="N", help="clips that run at once (default: 8)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    for path in filter(None, (arguments.output, arguments.save_records)):
        check_output_file(path)
    records = _records(arguments)
    if arguments.save_records:
        records.save(arguments.save_records)
    title = arguments.title or f"Prompts of {os.path.basename(os.path.normpath(arguments.source))}"
    summary = save_report(records, arguments.output, title=title, top=arguments.top, projection=arguments.projection)
    print(format_summary(summary))
    print(f"Wrote {arguments.output}")
    return 0


def _records(arguments: argparse.Namespace) -> SelectionRecords:
    if os.path.isfile(arguments.source):
        if arguments.data is not None:
            raise ValueError(
                f"{arguments.source} is a file of selections, which were made for data already. Leave out "
                f"{arguments.data}, or name an adapter."
            )
        return SelectionRecords.load(arguments.source)
    if arguments.data is None:
        raise ValueError(
            f"{arguments.source} is no file of selections. If it is an adapter, name a data file too: its clips are "
            "what the adapter is to choose prompts for."
        )
    # Before the model, which may take minutes to load.
    examples = read_examples(arguments.data)
    pipe = load_pipeline(arguments.source)
    return record_dataset(pipe, examples, batch_size=arguments.batch_size, show_progress=True)
