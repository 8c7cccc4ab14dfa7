"""`peft-listen predict`: writes the answers of a model to data files."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .answering import AnswerOptions, answer, read_data, report_skipped
from .options import make_parser, parse_options


HELP = "Write the answers of a model to data files as JSON lines."
# After Ctrl-C, the same command takes up what it has done.
CONTINUES = True
EPILOG = """\
The output has the lines of the data with the field `generated`:

  peft-listen predict my-adapter test.jsonl --output predictions.jsonl --max-new-tokens 20

If the command is interrupted, run it again: it continues where it stopped, with the same answers. With several
processes, each answers a part of the rows; for example on four GPUs, or in four processes on CPUs:

  accelerate launch --num_processes 4 -m peft_listen_cli predict my-adapter test.jsonl
  torchrun --nproc_per_node 4 -m peft_listen_cli predict my-adapter test.jsonl

Options may be given in a YAML file (--config), one `name: value` a line; arguments override it.

The exit code is 0 if the output is complete, and 2 after an error, such as a clip that cannot be read. To list all
such clips, run `peft-listen data check` first; with --on-bad-clip skip, their rows have no answer, but the field `error`.
The launchers exit with 1 if a process fails.
"""


@dataclass
class PredictOptions(AnswerOptions):
    """Options of the command."""

    output: str = field(default="predictions.jsonl", metadata={"help": "File to write.", "aliases": ["-o"]})


def parse(prog: str, argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser([PredictOptions], prog, HELP, EPILOG)
    parser.add_argument("model", help="folder or Hub name of a model with audio, or of an adapter for one")
    parser.add_argument("data", nargs="+", help="data file (JSON lines with audio, instruction, answer, task)")
    parser.add_argument("--config", metavar="FILE", help="YAML file with options")
    options, arguments = parse_options(parser, argv)
    return argparse.Namespace(run=run, options=options, model=arguments.model, data=arguments.data)


def run(arguments: Any) -> int:
    from peft_listen.files import check_output_file

    options: PredictOptions = arguments.options
    examples = read_data(arguments.data)
    output = Path(options.output)
    check_output_file(output)
    predictions, state = answer(arguments.model, examples, output, options)
    if state.is_main_process:
        num_skipped = report_skipped(predictions, arguments.data)
        num_rows = len(predictions) - num_skipped
        if options.json:
            print(json.dumps({"output": str(output), "num_rows": num_rows, "num_skipped": num_skipped}))
        else:
            print(f"{output}: {num_rows} answers" + (f", {num_skipped} rows skipped" if num_skipped else ""))
    state.destroy_process_group()
    return 0
