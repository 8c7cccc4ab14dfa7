"""`peft-listen evaluate`: scores the answers of a model, each task by its metric."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .answering import AnswerOptions, answer, read_data, report_skipped
from .options import make_parser, parse_options


if TYPE_CHECKING:
    from accelerate import PartialState

    from peft_listen.data import Prediction


HELP = "Score the answers of a model, each task by its metric."
# After Ctrl-C, the same command takes up what it has done.
CONTINUES = True
EPILOG = """\
The answers are generated as by `peft-listen predict`, or read from its output if that is given instead of a model:

  peft-listen evaluate my-adapter test.jsonl --output-dir evaluation
  peft-listen evaluate predictions.jsonl

The folder receives predictions.jsonl, scores.json and scores.md, a table; the table is also printed. A task is scored by
the metrics that --metrics assigns to it, by the one that its rows name in the field `metric`, or by those of its name:

{task_metrics}

Other tasks are scored by exact_match. Of several metrics, the first is the main one.

  peft-listen evaluate my-adapter test.jsonl --metrics speech=wer speech=cer "mood=accuracy:labels=happy|sad"

`eer` needs scores: the model's log-probability of Yes minus that of No, or of the answers of eer:answers=FIRST|SECOND. They
are computed for the rows of its task, beside the generated answers:

  peft-listen evaluate my-adapter test.jsonl --metrics sv=eer sv=accuracy

Interruptions, several processes, YAML files and --on-bad-clip are as in `peft-listen predict`; scores leave skipped rows
out, and count them. The exit code is 0 if all tasks are scored, and 2 after an error.
"""


@dataclass
class EvaluateOptions(AnswerOptions):
    """Options of the command."""

    output_dir: str = field(
        default="evaluation", metadata={"help": "Folder for answers and scores; created if it is missing."}
    )
    metrics: list[str] = field(
        default_factory=list,
        metadata={"help": "TASK=METRIC; several of one task are all computed, the first is the main one."},
    )


def parse(prog: str, argv: Sequence[str]) -> argparse.Namespace:
    # It needs torch, so it is imported when this command is selected.
    from peft_listen.metrics.tasks import named_task_metrics

    lines = [f"  {task:<7}{', '.join(metrics)}" for task, metrics in named_task_metrics().items()]
    parser = make_parser([EvaluateOptions], prog, HELP, EPILOG.replace("{task_metrics}", "\n".join(lines)))
    parser.add_argument(
        "source", help="folder or Hub name of a model with audio or of an adapter for one, or a file of predictions"
    )
    parser.add_argument(
        "data", nargs="*", help="for a model: data file (JSON lines with audio, instruction, answer, task)"
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with options")
    options, arguments = parse_options(parser, argv)
    return argparse.Namespace(run=run, options=options, source=arguments.source, data=arguments.data)


def run(arguments: Any) -> int:
    from peft_listen.evaluation import format_scores, save_scores
    from peft_listen.files import check_output_file
    from peft_listen.metrics import score_predictions
    from peft_listen.metrics.tasks import parse_task_metrics

    options: EvaluateOptions = arguments.options
    metrics = parse_task_metrics(options.metrics)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("scores.json", "scores.md"):
        check_output_file(folder / name)
    predictions, state = _predictions(arguments, metrics, folder / "predictions.jsonl")
    if state is None or state.is_main_process:
        report_skipped(predictions, arguments.data or [arguments.source])
        scores = score_predictions(predictions, metrics)
        result = save_scores(scores, folder, {"source": arguments.source, "data": list(arguments.data)})
        print(json.dumps(result) if options.json else format_scores(scores))
    if state is not None:
        state.destroy_process_group()
    return 0


def _predictions(
    arguments: Any, metrics: dict[str, Any], output_file: Path
) -> tuple[list[Prediction], PartialState | None]:
    from peft_listen.data import read_predictions
    from peft_listen.metrics.scoring import check_metrics, compared_answers

    if os.path.isfile(arguments.source):
        if arguments.data:
            raise ValueError(
                f"{arguments.source} is a file of predictions, which contains the answers to its data. Leave out "
                f"{', '.join(arguments.data)}, or name a model instead of the file."
            )
        return read_predictions(arguments.source), None
    if not arguments.data:
        raise ValueError(
            f"{arguments.source} is not a file of predictions. If it is a model, also name the data file to score it on."
        )
    # The metrics are tried first, since loading and running the model may take hours.
    examples = read_data(arguments.data)
    check_metrics(examples, metrics)
    return answer(arguments.source, examples, output_file, arguments.options, compared_answers(examples, metrics))
