"""`peft-listen ask`: asks a model one question, about one clip or without audio."""

from __future__ import annotations

import argparse
from typing import Any

from .argument_types import add_placement, positive_integer


HELP = "Ask a model about an audio clip, or without audio, and print its answer."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("audio", nargs="?", help="path or http(s) URL of the clip")
    parser.add_argument("question", nargs="?", help="the question (default: asks for a description of the clip)")
    parser.add_argument(
        "--no-audio", action="store_true", help="ask without a clip: the only other argument is the question"
    )
    parser.add_argument("--model", required=True, help="folder or Hub name of a model, or of a PEFT adapter for one")
    parser.add_argument(
        "--max-new-tokens",
        type=positive_integer,
        metavar="N",
        help="maximum length of the answer in tokens (default: the model's setting, or 256)",
    )
    add_placement(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.audio import load_audio
    from peft_listen.pipelines.asking import ask, make_streamer
    from peft_listen.pipelines.loading import load_pipeline

    clip, question = _inputs(arguments)
    # The clip is loaded first, since loading the model may take minutes.
    waveform = None if clip is None else load_audio(clip)
    pipe = load_pipeline(arguments.model, arguments.dtype, arguments.device, accepts_text_models=True)
    if waveform is not None and pipe.task != "audio-text-to-text":
        raise ValueError(
            f"{arguments.model!r} is a {type(pipe.model).__name__}, a language model without audio, which cannot answer a "
            "question about a clip. Ask it without the clip: peft-listen ask QUESTION --no-audio --model ..."
        )
    settings: dict[str, Any] = {}
    if arguments.max_new_tokens is not None:
        settings["max_new_tokens"] = arguments.max_new_tokens
    # Prints the answer while it is generated.
    streamer = make_streamer(pipe)
    answer = ask(pipe, question, waveform, streamer=streamer, **settings)
    if streamer is None:
        print(answer)
    return 0


def _inputs(arguments: argparse.Namespace) -> tuple[str | None, str | None]:
    """The clip and the question."""
    if not arguments.no_audio:
        if arguments.audio is None:
            raise ValueError(
                "Name a clip, or ask a question without one: peft-listen ask QUESTION --no-audio --model ..."
            )
        return arguments.audio, arguments.question
    if arguments.audio is None or arguments.question is not None:
        raise ValueError("With --no-audio, pass the question alone: peft-listen ask QUESTION --no-audio --model ...")
    return None, arguments.audio
