"""`peft-listen ask`: asks a model one question, about one clip or without audio."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from .argument_types import add_placement, positive_integer


if TYPE_CHECKING:
    from transformers import Pipeline


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
    from peft_listen.audio import DEFAULT_SAMPLING_RATE, load_audio
    from peft_listen.pipelines.loading import load_pipeline

    clip, question = _inputs(arguments)
    # The clip is loaded first, since loading the model may take minutes.
    waveform = None if clip is None else load_audio(clip)
    pipe = load_pipeline(arguments.model, arguments.dtype, arguments.device, accepts_text_models=True)
    settings = _settings(pipe)
    if arguments.max_new_tokens is not None:
        settings["max_new_tokens"] = arguments.max_new_tokens
    if pipe.task == "audio-text-to-text":
        (output,) = pipe(waveform, text=question, sampling_rate=DEFAULT_SAMPLING_RATE, **settings)
    elif waveform is not None:
        raise ValueError(
            f"{arguments.model!r} is a {type(pipe.model).__name__}, a language model without audio, which cannot answer a "
            "question about a clip. Ask it without the clip: peft-listen ask QUESTION --no-audio --model ..."
        )
    else:
        has_template = getattr(pipe.tokenizer, "chat_template", None) is not None
        prompt: Any = [{"role": "user", "content": question}] if has_template else question
        # The text pipeline samples by default; models with and without audio should be asked in the same way.
        sampling = bool(pipe.model.generation_config.do_sample)
        (output,) = pipe(prompt, return_full_text=False, do_sample=sampling, **settings)
    if "streamer" not in settings:
        print(output["generated_text"])
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


def _settings(pipe: Pipeline) -> dict[str, Any]:
    """Prints the answer to stdout while it is generated, unless the model's settings need whole answers."""
    from peft_listen.answer_end import find_answer_end

    from .streaming import AnswerStreamer

    config = pipe.model.generation_config
    if (config.num_beams or 1) > 1 or (config.num_return_sequences or 1) > 1:
        return {}
    end = find_answer_end(pipe.processor or pipe.tokenizer)
    return {"streamer": AnswerStreamer(pipe.tokenizer, None if end is None else end.token_id)}
