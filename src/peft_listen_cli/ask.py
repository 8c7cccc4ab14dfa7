"""`peft-listen ask`: asks a model one question about one clip."""

import argparse

from .argument_types import positive_integer


HELP = "Ask a model about an audio clip and print its answer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("audio", help="path or http(s) URL of the clip")
    parser.add_argument("question", nargs="?", help="the question (default: asks for a description of the clip)")
    parser.add_argument("--model", required=True, help="folder or Hub name of a model, or of a PEFT adapter for one")
    parser.add_argument(
        "--max-new-tokens",
        type=positive_integer,
        metavar="N",
        help="maximum length of the answer in tokens (default: the model's setting, or 256)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.audio import DEFAULT_SAMPLING_RATE, load_audio

    from .model_loading import load_pipeline

    # The clip is loaded first, since loading the model may take minutes.
    waveform = load_audio(arguments.audio)
    pipe = load_pipeline(arguments.model)
    length = {} if arguments.max_new_tokens is None else {"max_new_tokens": arguments.max_new_tokens}
    (output,) = pipe(waveform, text=arguments.question, sampling_rate=DEFAULT_SAMPLING_RATE, **length)
    print(output["generated_text"])
    return 0
