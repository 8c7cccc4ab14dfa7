"""`peft-listen train`: trains a model from a YAML file, scores it, and continues after an interruption."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .options import make_parser, parse_options, split_group


if TYPE_CHECKING:
    from peft_listen.runs import RunResult


HELP = "Train a model from a YAML file of options, and score it."
# After Ctrl-C, the same command takes up what it has done.
CONTINUES = True
EPILOG = """\
Every option is a name in the YAML file (with underscores) and an argument, which overrides the file:

  speech: openai/whisper-tiny.en
  llm: HuggingFaceTB/SmolLM2-135M-Instruct
  train_data: [train.jsonl]
  test_data: [test.jsonl]
  adapter: listen
  listen_pool_size: 64
  max_steps: 300
  output_dir: my-run

  peft-listen train config.yaml --learning-rate 1e-4
  peft-listen predict my-run/model test.jsonl

The output folder receives the model, which the other commands take by its path, the checkpoints, and the answers to
eval_data and test_data with their scores. If the command is interrupted, run it again: it continues from the last
checkpoint. A finished run is shown and not repeated, and other options for the same folder are refused. On several GPUs:

  accelerate launch --num_processes 4 -m peft_listen_cli train config.yaml

The exit code is 0 if the run is finished, and 2 after an error. The launchers exit with 1 if a process fails.
"""
# Heading of the options that few runs need.
_OTHER_ARGUMENTS = "other training arguments, those of transformers.TrainingArguments"


def parse(prog: str, argv: Sequence[str]) -> argparse.Namespace:
    # These need torch, so they are imported when this command is selected.
    from peft_listen.runs import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments

    # In the order in which the help shows them: what every run needs first.
    options = (ModelOptions, DataOptions, RunArguments, AdapterOptions, ListenOptions)
    # Without the names of all options, whose list is longer than a screen, also above each error.
    parser = make_parser(options, prog, HELP, EPILOG, usage="%(prog)s [config] [--json] [--option VALUE ...]")
    split_group(parser, RunArguments._argument_group_name, RunArguments._first_options, _OTHER_ARGUMENTS)
    parser.add_argument("config", nargs="?", help="YAML file with options")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    model, data, training, adapter, listen, rest = parse_options(parser, argv)
    return argparse.Namespace(run=run, options=[model, adapter, listen, data, training], json=rest.json)


def run(arguments: Any) -> int:
    from accelerate import PartialState

    from peft_listen.runs import TrainingRun

    # The trainer prints its logs; stdout is for the result.
    with contextlib.redirect_stdout(sys.stderr):
        result = TrainingRun(*arguments.options).run()
    state = PartialState()
    if state.is_main_process:
        print(json.dumps(_as_json(result)) if arguments.json else _as_text(result))
    state.destroy_process_group()
    return 0


def _as_json(result: RunResult) -> dict[str, Any]:
    scores = {split: {task: vars(score) for task, score in each.items()} for split, each in result.scores.items()}
    return {
        "model": str(result.model_dir),
        "was_finished": result.was_finished,
        "num_skipped": result.num_skipped,
        "uploaded_to": result.uploaded_to,
        "scores": scores,
    }


def _as_text(result: RunResult) -> str:
    from peft_listen.evaluation import format_scores

    lines = [
        f"{count} rows of {split}_data were skipped, because a clip cannot be loaded: see skipped.json."
        for split, count in result.num_skipped.items()
        if count
    ]
    for split, scores in result.scores.items():
        lines += [f"Scores on {split}_data:", "", format_scores(scores), ""]
    state = "The run was finished before." if result.was_finished else "The run is finished."
    uploaded = f", and was uploaded to {result.uploaded_to}" if result.uploaded_to else ""
    return "\n".join([*lines, f"{state} The model is in {result.model_dir}{uploaded}"])
