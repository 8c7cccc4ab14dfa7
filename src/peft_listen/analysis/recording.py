"""Runs a data set through a model and records the prompts that the adapter selects."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import torch
from torch import nn
from tqdm.auto import tqdm
from transformers import Pipeline, TextGenerationPipeline

from ..chat import as_prompts
from ..chat_encoding import pad_left, padding_token_id
from ..rows import bare_row, has_messages, row_clips, row_messages, split_answer, text_of
from ..tuners.listen import SelectionRecord, find_listen_layer
from ..unicode import half_surrogate_problem
from .records import SelectionRecords


def record_dataset(
    model: Pipeline | nn.Module,
    rows: Iterable[Mapping[str, Any]],
    *,
    collator: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
    batch_size: int = 8,
    show_progress: bool = False,
) -> SelectionRecords:
    """
    Records the selections of an adapter for the rows of a data set. Only the prompt of each row is run; no answer is
    generated.

    Args:
        model ([`AudioTextToTextPipeline`], [`~transformers.TextGenerationPipeline`] or `nn.Module`):
            pipeline or model with an active LiSTEN adapter. A text pipeline takes rows without audio; the prompt of a row is
            its chat as the tokenizer's template renders it, or without a template the `instruction` alone.
        rows (`Iterable[Mapping]`):
            the data, read once and in order. Each row has a `task` and, for a pipeline, `audio` and `instruction`, as
            returned by [`~peft_listen.data.read_examples`]. `instruction` (or `text`) and the file name of `audio` also
            form the name of the row in the report.
        collator (`Callable`, *optional*):
            required for a model: creates the keyword arguments of `model.forward` from a list of rows, such as an
            [`~peft_listen.training.AudioListenCollator`].
        batch_size (`int`, defaults to 8): number of rows per batch.
        show_progress (`bool`, defaults to `False`): whether to show a progress bar on stderr.

    Returns:
        [`SelectionRecords`] on the CPU.

    Raises:
        ValueError: if `batch_size` is below 1, there are no rows, a row has no valid task, the model has no active LiSTEN
            adapter, a model is passed without a collator, or a pipeline with one, or a row for a text pipeline has a clip or,
            without a chat template, more than an instruction.
    """
    if batch_size < 1:
        raise ValueError(f"`batch_size` must be at least 1, got {batch_size}.")
    if isinstance(model, Pipeline) != (collator is None):
        raise ValueError(
            "A pipeline creates its own batches and takes no `collator`. Leave it out."
            if isinstance(model, Pipeline)
            else "A model needs `collator=`, which creates its inputs from a list of rows; or pass a pipeline."
        )
    module: nn.Module = model.model if isinstance(model, Pipeline) else model
    layer = find_listen_layer(module)
    layer.resolve_adapter(None)  # raises if the active adapter is another one
    names = _Names()
    records: list[SelectionRecord] = []
    bar = tqdm(desc="Recording", unit="row", disable=not show_progress, total=_length(rows))

    def recorder(record: SelectionRecord) -> None:
        records.append(SelectionRecord(record.indices.cpu(), record.scores.cpu(), None, record.query.float().cpu()))
        bar.update(len(record.indices))

    with bar, layer.recording(recorder):
        if isinstance(model, TextGenerationPipeline):
            _run_text_pipeline(model, names.reading(rows), batch_size)
        elif isinstance(model, Pipeline):
            _run_pipeline(model, names.reading(rows), batch_size)
        else:
            assert collator is not None
            _run_model(module, names.reading(rows), collator, batch_size)
    if not names.tasks:
        raise ValueError("There are no rows to record; pass at least one.")
    return SelectionRecords.from_records(records, module, names.tasks, names.inputs)


def _run_pipeline(pipe: Pipeline, rows: Iterator[Mapping[str, Any]], batch_size: int) -> None:
    # No worker processes: the names of the rows are collected in this process while the rows are read.
    outputs: Any = pipe(
        rows,
        batch_size=batch_size,
        num_workers=0,
        max_new_tokens=1,
        do_sample=False,
        num_beams=1,
        num_return_sequences=1,
    )
    for _ in outputs:
        pass


@torch.no_grad()
def _run_text_pipeline(pipe: TextGenerationPipeline, rows: Iterator[Mapping[str, Any]], batch_size: int) -> None:
    # `generate` instead of the pipeline, which refuses batches if the tokenizer has no padding token or pads on the right.
    tokenizer: Any = pipe.tokenizer
    model: Any = pipe.model
    padding = padding_token_id(tokenizer)
    numbers = itertools.count()
    was_training = model.training
    model.eval()
    try:
        while batch := list(itertools.islice(rows, batch_size)):
            token_ids = [_tokenize_prompt(tokenizer, row, next(numbers)) for row in batch]
            inputs = {
                "input_ids": pad_left(token_ids, padding).to(pipe.device),
                "attention_mask": pad_left([[1] * len(row) for row in token_ids], 0).to(pipe.device),
            }
            model.generate(
                **inputs, max_new_tokens=1, do_sample=False, num_beams=1, num_return_sequences=1, pad_token_id=padding
            )
    finally:
        model.train(was_training)


def _tokenize_prompt(tokenizer: Any, row: Mapping[str, Any], number: int) -> list[int]:
    """The token ids that an answer to a row without audio would follow."""
    if (bare_row(row)["audio"] if has_messages(row) else row_clips(row)) != []:
        raise ValueError(
            f"Row {number} has audio, but the model is a language model without audio. Use rows whose `audio` is null, or a "
            "model with audio."
        )
    if not has_messages(row) and not isinstance(row.get("instruction"), str):
        raise ValueError(f"Row {number} has no `instruction`: expected a string, got {row.get('instruction')!r}.")
    messages, _ = split_answer(row_messages(row))
    texts = [{"role": message["role"], "content": text_of(message)} for message in messages]
    if getattr(tokenizer, "chat_template", None) is not None:
        try:
            text = tokenizer.apply_chat_template(texts, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # templates raise errors of many types
            raise ValueError(
                f"The chat template does not render row {number} ({type(error).__name__}: {error})."
            ) from error
    elif len(texts) == 1:
        text = texts[0]["content"]
    else:
        raise ValueError(
            f"Row {number} has {len(texts)} messages, but the tokenizer has no chat template to render them with. Set "
            "its `chat_template`, or use rows with an `instruction` alone."
        )
    (text,), adds_special_tokens = as_prompts([text], tokenizer)
    token_ids: list[int] = tokenizer(text, add_special_tokens=adds_special_tokens)["input_ids"]
    if not token_ids:
        raise ValueError(f"Row {number} has an empty prompt; expected an instruction.")
    return token_ids


@torch.no_grad()
def _run_model(
    model: nn.Module,
    rows: Iterator[Mapping[str, Any]],
    collator: Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]],
    batch_size: int,
) -> None:
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    try:
        while batch := list(itertools.islice(rows, batch_size)):
            inputs = {
                name: value.to(device) if torch.is_tensor(value) else value for name, value in collator(batch).items()
            }
            model(**inputs)
    finally:
        model.train(was_training)


class _Names:
    """Collects the tasks and names of the rows as they are read."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.inputs: list[str] = []

    def reading(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for number, row in enumerate(rows):
            task = row.get("task") if isinstance(row, Mapping) else None
            if not isinstance(task, str) or not task:
                raise ValueError(f"Row {number} has no task: expected a mapping with a string `task`, got {row!r}.")
            if problem := half_surrogate_problem(task):
                raise ValueError(f"The task of row {number} {problem}")
            self.tasks.append(task)
            self.inputs.append(_describe(row))
            yield row


def _describe(row: Mapping[str, Any]) -> str:
    if has_messages(row):
        row = bare_row(row)
    clips = [clip.get("path") if isinstance(clip, Mapping) else clip for clip in row_clips(row)]
    names = [os.path.basename(os.fsdecode(clip)) for clip in clips if isinstance(clip, (str, os.PathLike))]
    text = next((row[name] for name in ("instruction", "text") if isinstance(row.get(name), str)), None)
    description = " · ".join(part for part in (*names, text) if part)
    # A file name that is not UTF-8 contains half surrogate pairs, which cannot be written to a file.
    return description.encode(errors="backslashreplace").decode()


def _length(rows: Iterable[Any]) -> int | None:
    return len(rows) if isinstance(rows, Sized) else None
