"""Reads of tensors into Python. On a GPU each of them waits until the device has computed everything before it."""

from __future__ import annotations

import torch


def reading_is_free(device: torch.device) -> bool:
    """Whether Python can read the values of a tensor on this device without waiting for the device."""
    return device.type == "cpu"


def token_id_tensor(token_ids: list[int], device: torch.device) -> torch.Tensor:
    """Token ids as a tensor, `(num_tokens,)`. They are filled in on the device: `torch.tensor` copies them from the CPU,
    which waits for the device."""
    return torch.stack([torch.full((), token_id, dtype=torch.long, device=device) for token_id in token_ids])
