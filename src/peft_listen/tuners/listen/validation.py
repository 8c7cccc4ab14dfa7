"""Rejects inputs that prompts cannot be prepended to, with the reason."""

from __future__ import annotations

from typing import Any

import torch


_PACKED_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


def check_supported(call: dict[str, Any], past_length: int) -> None:
    """
    Checks the arguments of the backbone.

    Args:
        call (`dict`): the backbone's arguments, by name.
        past_length (`int`): number of positions in the cache.

    Raises:
        ValueError: for an input without tokens, for packed sequences, and for an attention mask that is not of shape
            `(batch_size, length)`.
    """
    inputs = call.get("input_ids") if call.get("inputs_embeds") is None else call["inputs_embeds"]
    if inputs is None:
        raise ValueError("The model got neither `input_ids` nor `inputs_embeds`. Pass one of them.")
    if 0 in inputs.shape[:2]:
        raise ValueError(
            f"The input has the shape {tuple(inputs.shape[:2])} (batch_size, sequence_length), so there is no token "
            "to compute a query from. Pass at least one row and one token."
        )
    for argument in _PACKED_ARGUMENTS:
        if call.get(argument) is not None:
            raise ValueError(
                f"LiSTEN does not support packed sequences (`{argument}` was given): every document needs its own "
                "prompts. Disable packing."
            )
    attention_mask, position_ids = call.get("attention_mask"), call.get("position_ids")
    if attention_mask is not None and not (torch.is_tensor(attention_mask) and attention_mask.ndim == 2):
        kind = (
            f"{attention_mask.ndim}-dimensional" if torch.is_tensor(attention_mask) else type(attention_mask).__name__
        )
        raise ValueError(
            f"LiSTEN needs an attention mask of shape (batch_size, sequence_length), which it extends over the prompts, but "
            f"got a prepared mask ({kind}). Pass the two-dimensional mask. If this comes from `generate` with a static "
            "cache, call `model.generate` itself, not the `generate` of the model's class."
        )
    if position_ids is None or past_length > 0 or position_ids.ndim != 2:
        return
    restarts = position_ids.diff(dim=-1) <= 0
    if attention_mask is not None:
        real = attention_mask.to(device=restarts.device, dtype=torch.bool)
        restarts = restarts & real[:, 1:] & real[:, :-1]
    # Waits for the device, once per prefill that gets positions: prompts inside a packed row would be silently wrong.
    if bool(restarts.any()):
        raise ValueError(
            "LiSTEN does not support packed sequences (`position_ids` start again within a row): every document needs "
            "its own prompts. Disable packing."
        )


def check_cache_matches_adapter(cache_has_prompts: bool, adapter_is_on: bool) -> None:
    """
    Checks that a filled cache matches the state of the adapter.

    Args:
        cache_has_prompts (`bool`): whether the cache contains prompts.
        adapter_is_on (`bool`): whether the adapter is on now.

    Raises:
        ValueError: if only one of them is true.
    """
    if adapter_is_on and not cache_has_prompts:
        raise ValueError(
            "The cache was filled while the LiSTEN adapter was off, and the adapter is on now. Start from an empty "
            "cache."
        )
    if cache_has_prompts and not adapter_is_on:
        raise ValueError(
            "The cache was filled while the LiSTEN adapter was on, and the adapter is off now. Start from an empty "
            "cache, or turn the adapter on again."
        )
