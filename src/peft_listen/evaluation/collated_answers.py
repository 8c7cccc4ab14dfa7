"""Answers of a model in training, whose collator may read the encoders' outputs from a cache."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn


# What the collator adds to the inputs of a prompt, for the loss.
_TRAINING_INPUTS = ("labels", "shift_labels", "logits_to_keep", "input_ids", "attention_mask")


@torch.no_grad()
def answer_batches(
    model: nn.Module,
    collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
    **generate_kwargs: Any,
) -> list[str]:
    """
    Generates the answers to some rows, the same as those of the pipeline.

    Args:
        model (`nn.Module`): the model, with or without an adapter, in evaluation mode.
        collator ([`~peft_listen.training.AudioListenCollator`]): makes batches; its feature cache is used.
        rows (`Sequence[Mapping]`): rows that the collator accepts; their last answers are generated.
        batch_size (`int`): rows in one call of `generate`.
        generate_kwargs (`Any`): arguments of `generate`.

    Returns:
        `list[str]`: the answers, without surrounding white space.
    """
    processor: Any = collator.processor  # type: ignore[attr-defined]
    answer_end = collator.answer_end  # type: ignore[attr-defined]
    tokenizer = processor.tokenizer
    device = next(model.parameters()).device
    answers: list[str] = []
    for start in range(0, len(rows), batch_size):
        batch = collator(rows[start : start + batch_size])
        prompts = [
            _prompt(*row) for row in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True)
        ]
        padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
        audio = {name: value for name, value in batch.items() if name not in _TRAINING_INPUTS}
        generate: Any = model.generate
        sequences = generate(
            **send_to_device({**padded, **audio}, device),
            pad_token_id=tokenizer.pad_token_id,
            **generate_kwargs,
        )
        for tokens in sequences[:, padded["input_ids"].shape[1] :].tolist():
            if answer_end is not None:
                # Some tokenizers do not mark the end token of their chat template as special.
                tokens = [token for token in tokens if token != answer_end.token_id]
            answers.append(tokenizer.decode(tokens, skip_special_tokens=True).strip())
    return answers


def _prompt(input_ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> list[int]:
    """What precedes the last answer of a row, with earlier answers."""
    length = int((labels == -100).nonzero()[-1]) + 1
    return input_ids[:length][mask[:length].bool()].tolist()
