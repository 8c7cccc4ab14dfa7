"""Scores of rows for metrics that compare two answers, such as the equal error rate of speaker verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn

from ..rows import with_answer


@torch.no_grad()
def row_scores(
    model: nn.Module,
    collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    compared: Mapping[str, tuple[str, str]],
    batch_size: int,
) -> list[float | None]:
    """
    Computes the log-probability of one answer minus that of another one. An answer is rendered as in training, with the token
    that ends it, and its log-probability is the sum of those of its tokens.

    Args:
        model (`nn.Module`): the model, with or without an adapter, in evaluation mode.
        collator ([`~peft_listen.training.AudioListenCollator`]): makes batches; its feature cache is used.
        rows (`Sequence[Mapping]`): rows that the collator accepts, with `task`. The compared answers take the place of the last
            ones of conversations; earlier answers are a part of the prompt.
        compared (`Mapping[str, tuple[str, str]]`): the two answers by the name of the task.
        batch_size (`int`): rows in one call of the model.

    Returns:
        `list[float]`: one score per row, in natural logarithms; `None` for rows of other tasks.
    """
    scores: list[float | None] = [None] * len(rows)
    chosen = [index for index, row in enumerate(rows) if row["task"] in compared]
    for start in range(0, len(chosen), batch_size):
        indices = chosen[start : start + batch_size]
        first, second = (
            _log_probabilities(
                model, collator([with_answer(rows[index], compared[rows[index]["task"]][side]) for index in indices])
            )
            for side in (0, 1)
        )
        for index, score in zip(indices, (first - second).tolist(), strict=True):
            scores[index] = score
    return scores


def _log_probabilities(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The log-probability of the last answer of each row, of shape `(batch_size,)`."""
    batch = send_to_device(batch, next(model.parameters()).device)
    # The labels tell the adapter which tokens are no part of the query: earlier answers are a part, as in generation.
    labels = batch["labels"] = _of_last_answer(batch["labels"])
    targets = nn.functional.pad(labels, (0, 1), value=-100)[:, 1:]
    if "logits_to_keep" in batch:
        keep = labels.shape[1] - int((labels != -100).any(0).nonzero()[0]) + 1
        targets = targets[:, -keep:].contiguous()
        batch |= {"shift_labels": targets, "logits_to_keep": keep}
    logits = model(**batch).logits[:, -targets.shape[1] :].float()
    is_answer = targets != -100  # [batch_size, positions]
    of_tokens = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (of_tokens * is_answer).sum(-1).double()


def _of_last_answer(labels: torch.Tensor) -> torch.Tensor:
    """Labels without those of earlier answers. Rows are padded on the left, so that the last answer ends them."""
    is_before = (labels == -100).flip(1).cumsum(1).flip(1) > 0  # an untrained position follows, or it is one
    return labels.masked_fill(is_before, -100)
