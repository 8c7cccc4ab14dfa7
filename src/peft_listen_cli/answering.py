"""What `predict` and `evaluate` have in common: their options, and the answers of a model to data files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .processes import start_processes


if TYPE_CHECKING:
    from accelerate import PartialState

    from peft_listen.data import Example, Prediction


@dataclass
class AnswerOptions:
    """Options for the generation of answers."""

    _VALID_DICT_FIELDS = ("chat_template_kwargs",)

    batch_size: int = field(default=8, metadata={"help": "Rows that are answered at once, in each process."})
    max_new_tokens: int = field(default=128, metadata={"help": "Maximum length of an answer in tokens."})
    num_beams: int = field(default=1, metadata={"help": "Beams of the search; 1 is greedy."})
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = field(
        default=None,
        metadata={
            "help": "Data type of the model; auto is that of the checkpoint. By default float32 on a CPU, auto elsewhere."
        },
    )
    device: str | None = field(
        default=None,
        metadata={"help": "cpu, cuda, cuda:1, mps, ... By default the accelerator of each process, if there is one."},
    )
    overwrite: bool = field(
        default=False, metadata={"help": "Start again if the output exists, instead of continuing it."}
    )
    chat_template_kwargs: str | None = field(
        default=None, metadata={"help": "Variables for the chat template: a mapping, or a JSON object."}
    )
    on_bad_clip: Literal["error", "skip"] = field(
        default="error",
        metadata={
            "help": "A row whose clip is missing, damaged, empty or too long ends the command, or is skipped: it has no answer "
            "and is counted."
        },
    )
    json: bool = field(default=False, metadata={"help": "Print the result as one JSON object."})

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_new_tokens", "num_beams"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")


def read_data(paths: Sequence[str]) -> list[Example]:
    """Reads data files, whose examples become one list."""
    from peft_listen.data import read_examples

    return [example for path in paths for example in read_examples(path)]


def report_skipped(predictions: Sequence[Prediction], data: Sequence[str]) -> int:
    """Logs how many rows have no answer, and why the first ones have none; returns their number."""
    from peft_listen.data.bad_clips import log_bad_clips

    problems = {number: row["error"] for number, row in enumerate(predictions) if "error" in row}
    log_bad_clips(problems, len(predictions), ", ".join(data))
    return len(problems)


def answer(
    model: str,
    examples: Sequence[Example],
    output_file: Path,
    options: AnswerOptions,
    compared: Mapping[str, tuple[str, str]] | None = None,
) -> tuple[list[Prediction], PartialState]:
    """Generates the answers of a model, or continues with them; all processes return all of them."""
    from transformers import Pipeline

    from peft_listen.evaluation import predict
    from peft_listen.mappings import parse_mapping
    from peft_listen.pipelines.loading import load_pipeline, model_fingerprints
    from peft_listen.training import AudioListenCollator

    variables = parse_mapping("chat_template_kwargs", options.chat_template_kwargs)
    state = start_processes()

    def load() -> Pipeline:
        return load_pipeline(model, options.dtype, options.device or str(state.device))

    settings = {"model": model, **model_fingerprints(model), "dtype": options.dtype}
    predictions = predict(
        load,
        examples,
        output_file,
        batch_size=options.batch_size,
        settings=settings,
        overwrite=options.overwrite,
        show_progress=True,
        compared=compared,
        make_collator=AudioListenCollator,
        on_bad_clip=options.on_bad_clip,
        max_new_tokens=options.max_new_tokens,
        num_beams=options.num_beams,
        **({"chat_template_kwargs": variables} if variables else {}),
    )
    return predictions, state
