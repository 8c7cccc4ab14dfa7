"""Adds the key loss to the loss that a trainer reads."""

from __future__ import annotations

from typing import Any

import torch
from transformers.utils import ModelOutput


def batch_key_loss(
    per_row: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: Any = None
) -> torch.Tensor:
    """
    Computes the key loss of a batch from the key losses of its rows.

    By default, it is the mean over rows (arXiv 2505.18517). If a trainer divides the token losses by the number of
    supervised tokens of all micro-batches and ranks, each row is weighted by its share of these. The gradient is then the
    same for every division of a batch into micro-batches.

    Args:
        per_row (`torch.FloatTensor` of shape `(batch_size,)`): key loss of each row.
        labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): -100 where not supervised.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*): supervised tokens of the whole optimizer step.

    Returns:
        `torch.FloatTensor`, a scalar.
    """
    if labels is None or num_items_in_batch is None:
        return per_row.mean()
    supervised = (labels[:, 1:] != -100).sum(dim=-1).to(per_row)  # the first token is never a target
    # A batch without supervised tokens has a key loss of 0, and not of 0 / 0.
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(per_row.device).clamp_min(1)
    else:
        num_items_in_batch = max(num_items_in_batch, 1)
    return (per_row * supervised).sum() / num_items_in_batch


def add_key_loss(
    output: Any, per_row: torch.Tensor, labels: torch.Tensor | None = None, num_items_in_batch: Any = None
) -> Any:
    """
    Adds the key loss to the output of a causal language model.

    Args:
        output ([`~transformers.utils.ModelOutput`] or `tuple`): with the loss; returned unchanged without one.
        per_row (`torch.FloatTensor` of shape `(batch_size,)`): weighted key loss of each row.
        labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): -100 where not supervised.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*): supervised tokens of the whole optimizer step.

    Returns:
        The same output with the sum of both losses.
    """
    key_loss = batch_key_loss(per_row, labels, num_items_in_batch)
    if isinstance(output, ModelOutput):
        if output.get("loss") is not None:
            output["loss"] = output["loss"] + key_loss.to(output["loss"])
        if _is_for_supervised_fine_tuning(output):
            # TRL's SFTTrainer does not read the loss: it sums `-log_probs` and divides by the number of supervised tokens.
            # With an equal share added to each supervised token, that sum equals `batch_key_loss`.
            log_probs = output["log_probs"]
            share = per_row.to(log_probs).unsqueeze(-1)  # [batch, 1]
            output["log_probs"] = log_probs - share * output["label_mask"].to(log_probs.device)
    elif isinstance(output, tuple) and output and torch.is_tensor(output[0]) and output[0].ndim == 0:
        output = (output[0] + key_loss.to(output[0]), *output[1:])
    return output


def is_read_by_trainers(output: Any) -> bool:
    """Whether a trainer that gets this output reads a loss from it, to which the key loss can be added. TRL's trainers of
    preferences read log-probabilities only, and trainers that pass no labels compute their loss from the logits."""
    if not isinstance(output, ModelOutput):
        return True
    if output.get("log_probs") is not None:
        return _is_for_supervised_fine_tuning(output)
    return output.get("loss") is not None


def _is_for_supervised_fine_tuning(output: ModelOutput) -> bool:
    # Among TRL's trainers that fuse the head, only SFTTrainer requests the accuracy and no mean logits. In the others,
    # `log_probs` are those of the policy and must not change.
    requested = all(output.get(name) is not None for name in ("log_probs", "label_mask", "is_top1"))
    return requested and output.get("mean_logits") is None
