"""Number of prompts of a forward pass: fixed, or drawn once per optimizer step."""

from __future__ import annotations

import random

from .config import ListenConfig


def draw_prompt_length(seed: int, step: int, maximum: int) -> int:
    """
    The prompt length of one optimizer step, uniform on 1 to `maximum` (stochastic prompt length, arXiv 2505.18517).

    A pure function of its arguments: the same on every rank and micro-batch, and after a resume.
    """
    # Seeding by a string hashes all of it (SHA-512), so neighboring steps are independent, and the sequence is the same
    # on every platform.
    return random.Random(f"{seed}:{step}").randint(1, maximum)


def train_prompt_length(config: ListenConfig, step: int) -> int:
    """
    The prompt length of one optimizer step.

    Args:
        config ([`ListenConfig`]): read for `prompt_length`, `stochastic_prompt_length`, `max_train_prompt_length`,
            `pool_size` and `seed`.
        step (`int`): the optimizer step, from 0.

    Returns:
        `int`: from 1 to `pool_size`.
    """
    if not config.stochastic_prompt_length:
        return config.prompt_length
    return draw_prompt_length(config.seed, step, config.max_train_prompt_length or config.pool_size)
