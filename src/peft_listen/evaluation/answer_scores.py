"""Scores of rows for metrics that compare two answers, such as the equal error rate of speaker verification."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import nn


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
        rows (`Sequence[Mapping]`): rows with `audio`, `instruction` and `task`.
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
                model, collator([{**rows[index], "answer": compared[rows[index]["task"]][side]} for index in indices])
            )
            for side in (0, 1)
        )
        for index, score in zip(indices, (first - second).tolist(), strict=True):
            scores[index] = score
    return scores


def _log_probabilities(model: nn.Module, batch: dict[str, Any]) -> torch.Tensor:
    """The log-probability of the answer of each row, of shape `(batch_size,)`."""
    batch = send_to_device(batch, next(model.parameters()).device)
    targets = batch["shift_labels"]  # [batch_size, positions of the longest answer]
    # The labels tell the adapter which tokens are no part of the query.
    logits = model(**batch).logits[:, -targets.shape[1] :].float()
    is_answer = targets != -100
    of_tokens = logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    return (of_tokens * is_answer).sum(-1).double()
