"""Inputs that prompts cannot be prepended to, each refused with its reason."""

from __future__ import annotations

from typing import Any

import torch


_PACKED_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


def refuse_unsupported(call: dict[str, Any], past_length: int) -> None:
    """
    Refuses what the hooks cannot serve.

    Args:
        call (`dict`): the backbone's arguments, by name.
        past_length (`int`): number of positions in the cache.

    Raises:
        ValueError: for packed sequences, and for an attention mask that is not of shape `(batch_size, length)`.
    """
    for argument in _PACKED_ARGUMENTS:
        if call.get(argument) is not None:
            raise ValueError(
                f"LISTEN does not support packed sequences (`{argument}` was given): every document needs prompts of "
                "its own. Turn packing off."
            )
    attention_mask, position_ids = call.get("attention_mask"), call.get("position_ids")
    if attention_mask is not None and not (torch.is_tensor(attention_mask) and attention_mask.ndim == 2):
        kind = (
            f"{attention_mask.ndim}-dimensional" if torch.is_tensor(attention_mask) else type(attention_mask).__name__
        )
        raise ValueError(
            f"LISTEN needs the attention mask of shape (batch_size, sequence_length) to extend it over the prompts, and "
            f"got a prepared one ({kind}). Pass the two-dimensional mask. If this comes from `generate` with a static "
            "cache, call `model.generate` itself, not the `generate` of the model's class."
        )
    if position_ids is None or past_length > 0 or position_ids.ndim != 2:
        return
    restarts = position_ids.diff(dim=-1) <= 0
    if attention_mask is not None:
        real = attention_mask.to(device=restarts.device, dtype=torch.bool)
        restarts = restarts & real[:, 1:] & real[:, :-1]
    if bool(restarts.any()):
        raise ValueError(
            "LISTEN does not support packed sequences (`position_ids` start again within a row): every document needs "
            "prompts of its own. Turn packing off."
        )


def refuse_cache_of_other_state(cache_has_prompts: bool, is_on: bool) -> None:
    """
    Refuses a filled cache that does not fit the adapter's state.

    Args:
        cache_has_prompts (`bool`): whether the cache was filled behind prompts.
        is_on (`bool`): whether the adapter is on now.

    Raises:
        ValueError: if one is and the other is not.
    """
    if is_on and not cache_has_prompts:
        raise ValueError(
            "The cache was filled while the LISTEN adapter was off, and the adapter is on now. Start from an empty "
            "cache, so that prompts are chosen and prepended."
        )
    if cache_has_prompts and not is_on:
        raise ValueError(
            "The cache was filled while the LISTEN adapter was on, and the adapter is off now. Start from an empty "
            "cache, or turn the adapter on again."
        )
