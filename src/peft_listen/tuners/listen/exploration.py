"""Noise on the scores while training begins, so that the pool is chosen from widely at first and sharply later."""

from __future__ import annotations

import torch

from .config import ListenConfig
from .step_random import step_generator


def exploration_noise(
    config: ListenConfig, step: int, forward_pass: int, batch_size: int, rank: int | None = None
) -> torch.Tensor | None:
    """
    Normally distributed noise whose scale falls linearly from `config.exploration` to 0 over
    `config.exploration_steps` optimizer steps (ours).

    A pure function of its arguments; see [`step_generator`].

    Args:
        config ([`ListenConfig`]): read for `exploration`, `exploration_steps`, `pool_size` and `seed`.
        step (`int`): the optimizer step, from 0.
        forward_pass (`int`): which of the step's micro-batches this is, from 0.
        batch_size (`int`)
        rank (`int`, *optional*): that of the process, each of which draws its own; this one's if not given.

    Returns:
        `torch.FloatTensor` of shape `(batch_size, pool_size)` on the CPU, or `None` once the noise has gone.
    """
    scale = config.exploration * (1.0 - step / config.exploration_steps) if config.exploration_steps else 0.0
    if scale <= 0:
        return None
    generator = step_generator("exploration", config.seed, step, forward_pass, rank)
    return scale * torch.randn(batch_size, config.pool_size, generator=generator)
