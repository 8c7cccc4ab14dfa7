"""Answers the rows of data files with a pipeline, in several processes, and continues after an interruption."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from accelerate import PartialState
from tqdm.auto import tqdm
from transformers import Pipeline

from ..data import Example, Prediction
from ..data.bad_clips import OnBadClip, row_problem
from ..processes import in_main_process
from .answer_scores import row_scores
from .prediction_file import PredictionFile


Value = TypeVar("Value")

# Fields of a row that its question consists of.
_READ = ("audio", "system", "instruction", "messages")


def predict(
    pipe: Pipeline | Callable[[], Pipeline],
    examples: Sequence[Example],
    output_file: str | os.PathLike[str],
    *,
    batch_size: int = 8,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    show_progress: bool = False,
    compared: Mapping[str, tuple[str, str]] | None = None,
    make_collator: Callable[..., Any] | None = None,
    on_bad_clip: OnBadClip = "error",
    **generate_kwargs: Any,
) -> list[Prediction]:
    """
    Generates the answers of a model to all examples, and writes them to a file of JSON lines, which
    [`~peft_listen.data.read_predictions`] reads.

    A run that was interrupted is continued by the same call, with the same answers as an uninterrupted one; see
    [`PredictionFile`]. If the file is complete, nothing is generated. With several processes, such as those of
    `accelerate launch`, each answers a part of the examples, so all of them have to call this function.

    Args:
        pipe ([`~transformers.Pipeline`] or `Callable`):
            the pipeline "audio-text-to-text", or a function that loads it, which is called only if there is something to
            generate.
        examples (`Sequence[Example]`): rows as [`~peft_listen.data.read_examples`] returns them. In `messages`, audio parts
            may hold their clips: paths, URLs or `data:` URIs.
        output_file (`str` or `os.PathLike`): the file to write.
        batch_size (`int`, defaults to 8): number of rows in one call of `generate`.
        settings (`Mapping[str, Any]`, *optional*):
            what identifies the model, such as its name; values that JSON can represent. A file that was begun with other
            settings is not continued. By default, the pipeline's `model.name_or_path`.
        overwrite (`bool`, defaults to `False`): whether to start again if the file exists.
        show_progress (`bool`, defaults to `False`): whether to show a progress bar on stderr.
        compared (`Mapping[str, tuple[str, str]]`, *optional*):
            two answers by the name of a task, whose rows get the field `score`, the log-probability of the first answer minus
            that of the second; see [`~peft_listen.metrics.scoring.compared_answers`]. It needs `make_collator`.
        make_collator (`Callable`, *optional*):
            makes a collator from the pipeline's processor, `chat_template_kwargs` and `limits`:
            [`~peft_listen.training.AudioListenCollator`].
        on_bad_clip (`"error"` or `"skip"`, defaults to `"error"`):
            what is done about a row with a clip that cannot be loaded: it is missing, damaged or empty, or exceeds a limit. With
            `"skip"`, the row has no answer; `generated` is empty, and `error` says why. It stays so when the run is continued
            with `"skip"`; with `"error"`, rows that were skipped are answered again, until the file is complete.
        generate_kwargs (`Any`): arguments of `generate`, such as `max_new_tokens`, and `chat_template_kwargs`, variables for the
            chat template. Answers are greedy unless `do_sample` is set.

    Returns:
        `list[Prediction]`: the examples with their answers, and with `score` if their task is in `compared`.

    Raises:
        ValueError: if the file is from other settings or other examples, a row is not valid, such as one without `answer`,
            `batch_size` is below 1, `compared` is given without `make_collator`, or `on_bad_clip` is another value. Nothing was
            generated then. Also if a complete file has skipped rows, which `on_bad_clip="error"` does not accept.
        OSError: if a clip cannot be read or the file cannot be written.

    Example:

    ```python
    from peft_listen.data import read_examples
    from peft_listen.evaluation import predict
    from transformers import pipeline

    pipe = pipeline("audio-text-to-text", model="my-adapter")
    predictions = predict(pipe, read_examples("test.jsonl"), "predictions.jsonl", max_new_tokens=20)
    ```
    """
    generate_kwargs = {"do_sample": False, **generate_kwargs}
    if settings is None:
        settings = {"model": pipe.model.name_or_path} if isinstance(pipe, Pipeline) else {}
    if compared and make_collator is None:
        raise ValueError("`compared` needs `make_collator`: pass `peft_listen.training.AudioListenCollator`.")
    if on_bad_clip not in ("error", "skip"):
        raise ValueError(f'`on_bad_clip` must be "error" or "skip", got {on_bad_clip!r}.')
    settings = {**settings, "generation": generate_kwargs}
    if compared:
        settings["compared"] = {task: list(pair) for task, pair in compared.items()}
    is_skipping = on_bad_clip == "skip"
    file = PredictionFile(output_file, examples, settings, batch_size, compared or (), accepts_errors=is_skipping)
    state = PartialState()
    in_main_process(lambda: file.prepare(overwrite))
    if not file.is_finished:
        finished = file.answers()
        pending = [batch for batch in range(len(file.batches)) if batch not in finished]
        mine = pending[state.process_index :: state.num_processes]
        # Every process has looked at the parts before one of them writes another.
        state.wait_for_everyone()
        if mine:
            pipe = pipe if isinstance(pipe, Pipeline) else pipe()
            collator: Any = None
            if compared and make_collator is not None:
                # The prompts are those that the pipeline makes with the same arguments.
                shared = {name: generate_kwargs.get(name) for name in ("chat_template_kwargs", "limits")}
                collator = make_collator(pipe.processor, **shared)
            done = sum(len(file.batches[batch]) for batch in finished) if state.num_processes == 1 else 0
            total = done + sum(len(file.batches[batch]) for batch in mine)
            is_hidden = not (show_progress and state.is_main_process)
            with tqdm(desc="Answering", unit="row", initial=done, total=total, disable=is_hidden) as progress:
                for batch in mine:
                    rows = file.batches[batch]
                    limits = generate_kwargs.get("limits")
                    errors = [row_problem(row, limits) if is_skipping else None for row in rows]
                    good = [row for row, error in zip(rows, errors, strict=True) if error is None]
                    scores = None
                    if compared and collator is not None:
                        model: Any = pipe.model
                        scores = _spread(row_scores(model, collator, good, compared, len(rows)), errors, None)
                    answers = answer_rows(pipe, good, **generate_kwargs) if good else []
                    file.add(batch, _spread(answers, errors, ""), scores, errors)
                    progress.update(len(file.batches[batch]))
        state.wait_for_everyone()
        in_main_process(file.finish)
    return file.read()


def _spread(values: Sequence[Value], errors: Sequence[str | None], filling: Value) -> list[Value]:
    """The values of the rows without an error, and something else for the others."""
    remaining = iter(values)
    return [next(remaining) if error is None else filling for error in errors]


def answer_rows(pipe: Pipeline, rows: Sequence[Mapping[str, Any]], **generate_kwargs: Any) -> list[str]:
    """
    Generates the answers to some rows in one batch.

    Args:
        pipe ([`~transformers.Pipeline`]): the pipeline "audio-text-to-text".
        rows (`Sequence[Mapping]`): rows as [`~peft_listen.data.read_examples`] returns them.
        generate_kwargs (`Any`): arguments of `generate`, and `chat_template_kwargs`.

    Returns:
        `list[str]`: the answers, without surrounding white space.
    """
    inputs = [{name: row[name] for name in _READ if row.get(name) is not None} for row in rows]
    outputs = pipe(inputs, batch_size=len(inputs), **generate_kwargs)
    return [output[0]["generated_text"].strip() for output in outputs]
