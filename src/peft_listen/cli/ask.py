"""`peft-listen ask`: one question about one clip."""

import argparse

from ..audio import DEFAULT_SAMPLING_RATE, load_audio
from ..pipelines import DEFAULT_INSTRUCTION
from .argument_types import positive_integer
from .model_loading import load_pipeline


HELP = "Ask a model about a clip, and print its answer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("audio", help="path or http(s) URL of the clip")
    parser.add_argument(
        "question", nargs="?", default=DEFAULT_INSTRUCTION, help=f"what to ask (default: {DEFAULT_INSTRUCTION!r})"
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a model, or of a PEFT adapter on one")
    parser.add_argument(
        "--max-new-tokens",
        type=positive_integer,
        metavar="N",
        help="longest answer in tokens (default: the model's, or 256)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    # Before the model, which may take minutes to load.
    waveform = load_audio(arguments.audio)
    pipe = load_pipeline(arguments.model)
    length = {} if arguments.max_new_tokens is None else {"max_new_tokens": arguments.max_new_tokens}
    (output,) = pipe(waveform, text=arguments.question, sampling_rate=DEFAULT_SAMPLING_RATE, **length)
    print(output["generated_text"])
    return 0
