"""Positions of the query, and their mean. The only place that excludes the answer from the query."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from .synchronization import token_id_tensor


# Fields of transformers' configurations with the ids of the placeholder tokens of other modalities.
_PLACEHOLDER_NAMES = ("audio_token_id", "audio_token_index", "image_token_id", "image_token_index", "video_token_id")


class TokenGroups(NamedTuple):
    """
    Kinds of positions that the query treats separately.

    Attributes:
        ignored (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Tokens that are never in the query.
        modality (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Positions of audio, images or video, which are averaged separately from text.
    """

    ignored: torch.Tensor | None = None
    modality: torch.Tensor | None = None


NO_GROUPS = TokenGroups()


@torch.no_grad()
def token_positions(
    token_ids: list[int],
    embedding: nn.Module,
    input_ids: torch.Tensor | None = None,
    inputs_embeds: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """
    Finds the positions of the given tokens in an input, by token ids or, if there are none, by embeddings.

    Args:
        token_ids (`list[int]`): the tokens.
        embedding (`nn.Module`): the model's input embedding.
        input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*)
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_size)`, *optional*)

    Returns:
        `torch.BoolTensor` of shape `(batch_size, sequence_length)`, or `None` without any input.
    """
    if input_ids is not None:
        return torch.isin(input_ids, token_id_tensor(token_ids, input_ids.device))
    if inputs_embeds is None:
        return None
    embeds = embedding(token_id_tensor(token_ids, inputs_embeds.device)).to(inputs_embeds.dtype)
    found = torch.zeros(inputs_embeds.shape[:2], dtype=torch.bool, device=inputs_embeds.device)
    for embed in embeds:
        found |= (inputs_embeds == embed).all(dim=-1)
    return found


def placeholder_token_ids(model_config: object) -> list[int]:
    """Ids of the tokens that audio, images and video replace in a model's input, from its configuration."""
    token_ids = (getattr(model_config, name, None) for name in _PLACEHOLDER_NAMES)
    return sorted({token_id for token_id in token_ids if isinstance(token_id, int)})


def leading_padding(attention_mask: torch.Tensor) -> torch.Tensor:
    """Number of padded positions before each row's first real token.

    Args:
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`): 1 for real tokens, 0 for padding.

    Returns:
        `torch.LongTensor` of shape `(batch_size, 1)`; 0 for a row that contains only padding.
    """
    return attention_mask.long().argmax(dim=-1, keepdim=True)


def prompt_positions(
    batch_size: int,
    sequence_length: int,
    attention_mask: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
    query_mask: torch.Tensor | None = None,
    ignored: torch.Tensor | None = None,
    device: torch.device | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The positions of each row that belong to its prompt (audio, instruction and chat template), without padding and
    without the answer: with labels, the prompt ends at the first position whose label is not -100.

    Args:
        batch_size (`int`), sequence_length (`int`): shape of the input.
        attention_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            1 for real tokens, 0 for padding; without it, all tokens are real.
        labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Targets, -100 where not supervised.
        query_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
            Positions given by the caller, instead of the rule by labels; padding is still excluded.
        ignored (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Positions excluded from the prompt, unless no others would remain.
        device (`torch.device`, *optional*): device of the result.

    Returns:
        `tuple[torch.BoolTensor, torch.BoolTensor]`: the positions, of shape `(batch_size, sequence_length)`, and the rows
        that had none, of shape `(batch_size,)`, for which the first real token is used.

    Raises:
        ValueError: if `query_mask` or `labels` has another shape than the input.
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
        if tuple(labels.shape) != (batch_size, sequence_length):
            raise ValueError(
                f"`labels` must have one entry per token, in the shape of the input, {(batch_size, sequence_length)}, got "
                f"{tuple(labels.shape)}."
            )
        supervised = labels.to(device) != -100
        # `torch.where` with a number copies it to the device, and waits for the copy.
        end = supervised.long().argmax(dim=-1).masked_fill(~supervised.any(dim=-1), sequence_length)
        prompt = real & (positions < end.unsqueeze(-1))
    else:
        prompt = real
    if ignored is not None:
        remaining = prompt & ~ignored.to(prompt.device)
        prompt = torch.where(remaining.any(dim=-1, keepdim=True), remaining, prompt)
    without_prompt = ~prompt.any(dim=-1)
    first_real = positions == leading_padding(real)
    return torch.where(without_prompt.unsqueeze(-1), first_real, prompt), without_prompt


def mean_query(
    inputs_embeds: torch.Tensor, positions: torch.Tensor, modality: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Mean of the input embeddings over the prompt's positions (arXiv 2505.18517, the query), in float32.

    Args:
        inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, embedding_size)`)
        positions (`torch.BoolTensor` of shape `(batch_size, sequence_length)`): at least one per row.
        modality (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
            Positions of audio, images or video. Where a row has both these and text, the query is the mean of two
            means, with that of the modality scaled to the norm of that of the text (ours): the norm of a projector's
            outputs is arbitrary, and the larger ones would dominate the query.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, embedding_size)`.
    """
    if modality is None:
        return masked_mean(inputs_embeds, positions)
    modality = modality.to(positions.device)
    modality_positions, text_positions = positions & modality, positions & ~modality
    other, text = masked_mean(inputs_embeds, modality_positions), masked_mean(inputs_embeds, text_positions)
    norm = torch.linalg.vector_norm(text, dim=-1, keepdim=True)
    both = (text + F.normalize(other, dim=-1) * norm) / 2
    has_other = modality_positions.any(dim=-1, keepdim=True)
    has_text = text_positions.any(dim=-1, keepdim=True)
    return torch.where(has_other & has_text, both, torch.where(has_other, other, text))


def masked_mean(inputs_embeds: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Mean of `(batch_size, sequence_length, d)` over the positions `(batch_size, sequence_length)` of each row, float32; 0
    for a row without any."""
    # Other embeddings are replaced by zero instead of multiplied by zero, which would propagate NaN.
    embeds = inputs_embeds.float().masked_fill(~positions.unsqueeze(-1), 0.0)
    return embeds.sum(dim=1) / positions.sum(dim=-1, keepdim=True).clamp_min(1)
