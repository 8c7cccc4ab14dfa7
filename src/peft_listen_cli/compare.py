"""`peft-listen compare`: prints what differs between two adapters of one base model."""

from __future__ import annotations

import argparse
import json

from .argument_types import positive_integer


HELP = "Compare two adapters of one base model: their prompts, and what they select for the inputs of a data file."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", help="folder or Hub name of an adapter")
    parser.add_argument("second", help="folder or Hub name of another adapter of the same base model and pool size")
    parser.add_argument("data", nargs="?", help="data file, for the share of inputs whose selection differs")
    parser.add_argument(
        "--top",
        type=positive_integer,
        default=10,
        metavar="N",
        help="list the N prompts whose values differ most (default: 10)",
    )
    parser.add_argument(
        "--batch-size", type=positive_integer, default=8, metavar="N", help="number of rows in a batch (default: 8)"
    )
    parser.add_argument("--json", action="store_true", help="print the comparison of all prompts as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.analysis import compare_adapters, format_comparison, record_dataset
    from peft_listen.data import read_examples
    from peft_listen.pipelines.loading import check_model_name, load_pipeline

    for name in (arguments.first, arguments.second):
        check_model_name(name)
    # The prompts are compared first, since loading and running the models may take minutes.
    examples = read_examples(arguments.data) if arguments.data is not None else []
    comparison = compare_adapters(arguments.first, arguments.second)
    if examples:
        first, second = (
            # Each model is freed before the next one is loaded.
            record_dataset(
                load_pipeline(name, accepts_text_models=True),
                examples,
                batch_size=arguments.batch_size,
                show_progress=True,
            )
            for name in (arguments.first, arguments.second)
        )
        comparison = compare_adapters(arguments.first, arguments.second, first_records=first, second_records=second)
    print(json.dumps(comparison.to_dict()) if arguments.json else format_comparison(comparison, arguments.top))
    return 0
