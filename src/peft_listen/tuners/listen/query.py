"""Which positions make the query, and their mean. The one place that keeps the answer out of it."""

from __future__ import annotations

from typing import Optional

import torch


def leading_padding(attention_mask: torch.Tensor) -> torch.Tensor:
    """Number of padded positions before each row's first real token.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): 1 for real tokens, 0 for padding.

    Returns:
        `torch.LongTensor` of shape `(batch_size, 1)`; 0 for a row that is padding only.
    """
    return attention_mask.long().argmax(dim=-1, keepdim=True)


def prompt_positions(
    batch_size: int,
    sequence_length: int,
    attention_mask: Optional[torch.Tensor] = None,
    labels: Optional[torch.Tensor] = None,
    query_mask: Optional[torch.Tensor] = None,
    device: Optional[torch.device] = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The positions of each row that belong to its prompt (audio, instruction and chat template), never padding and never
    the answer: with labels, the prompt ends at the first position whose label is not -100.

    Args:
        batch_size (`int`), sequence_length (`int`): shape of the input.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for real tokens, 0 for padding; all real when not given.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Targets, -100 where nothing is supervised.
        query_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            Positions named by the caller, instead of the rule by labels; padding is still left out.
        device (`torch.device`, *optional*): where to make the result.

    Returns:
        `tuple[torch.BoolTensor, torch.BoolTensor]`: the positions, of shape `(batch_size, sequence_length)`, and which
        rows had none, of shape `(batch_size,)`; those take their first real token.

    Raises:
        ValueError: if `query_mask` has another shape than the input.
    """
    positions = torch.arange(sequence_length, device=device).expand(batch_size, -1)
    if attention_mask is None:
        real = torch.ones(batch_size, sequence_length, dtype=torch.bool, device=device)
    else:
        real = attention_mask.to(device=device, dtype=torch.bool)
    if query_mask is not None:
        if tuple(query_mask.shape) != (batch_size, sequence_length):
            raise ValueError(
                f"`listen_query_mask` must have the shape of the input, {(batch_size, sequence_length)}, "
                f"got {tuple(query_mask.shape)}."
            )
        prompt = real & query_mask.to(device=device, dtype=torch.bool)
    elif labels is not None:
        supervised = labels.to(device) != -100
        end = torch.where(supervised.any(dim=-1), supervised.long().argmax(dim=-1), sequence_length)
        prompt = real & (positions < end.unsqueeze(-1))
    else:
        prompt = real
    without_prompt = ~prompt.any(dim=-1)
    first_real = positions == leading_padding(real)
    return torch.where(without_prompt.unsqueeze(-1), first_real, prompt), without_prompt


def mean_query(inputs_embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """
    Mean of the input embeddings over the prompt's positions (arXiv 2505.18517, the query), in float32.

    Args:
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_size)`)
        positions (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): at least one per row.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, embedding_size)`.
    """
    # Padded embeddings are set to zero, not multiplied by it: whatever stands there, NaN included, must not matter.
    embeds = inputs_embeds.float().masked_fill(~positions.unsqueeze(-1), 0.0)
    return embeds.sum(dim=1) / positions.sum(dim=-1, keepdim=True).clamp_min(1)
