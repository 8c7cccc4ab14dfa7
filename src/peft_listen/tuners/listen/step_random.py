"""Random numbers that depend on the place in the training alone, so that a resumed run draws what the whole one would have."""

from __future__ import annotations

import random

import torch

from .running_statistics import process_rank


def step_generator(purpose: str, seed: int, step: int, forward_pass: int, rank: int | None = None) -> torch.Generator:
    """
    Generator for one forward pass of the training.

    Args:
        purpose (`str`): what is drawn; different purposes draw independently of each other.
        seed (`int`): that of the configuration.
        step (`int`): the optimizer step, from 0.
        forward_pass (`int`): which of the step's micro-batches this is, from 0.
        rank (`int`, *optional*): that of the process, each of which draws its own; this one's if not given.

    Returns:
        `torch.Generator` on the CPU.
    """
    rank = process_rank() if rank is None else rank
    state = random.Random(f"{purpose}:{seed}:{step}:{forward_pass}:{rank}").getrandbits(63)
    return torch.Generator().manual_seed(state)
