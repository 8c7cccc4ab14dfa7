"""Number of prompts of a forward pass: fixed, or drawn once per optimizer step."""

from __future__ import annotations

import random
import warnings

from .config import ListenConfig


# Above this ratio of the drawn maximum to the length at inference, few steps train the prompts of inference alone (ours).
MAX_RATIO = 4


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
        config ([`ListenConfig`]): read for `prompt_length`, `stochastic_prompt_length`, `max_train_prompt_length` and
            `seed`.
        step (`int`): the optimizer step, from 0.

    Returns:
        `int`: from 1 to `pool_size`.
    """
    if not config.stochastic_prompt_length:
        return config.prompt_length
    return draw_prompt_length(config.seed, step, config.max_train_prompt_length)


def warn_of_other_lengths_in_training(config: ListenConfig) -> None:
    """Warns if the prompt lengths that a new adapter is trained with differ much from that of inference."""
    k, maximum = config.prompt_length, config.max_train_prompt_length
    if not config.stochastic_prompt_length or k <= maximum <= MAX_RATIO * k:
        return
    warnings.warn(
        f"Training draws 1 to {maximum} prompts for each step (`max_train_prompt_length`={maximum}), "
        f"{(maximum + 1) / 2:g} on average, but inference uses `prompt_length`={k}, with which hardly any step is "
        f"trained. Set `max_train_prompt_length` from {k} to {min(MAX_RATIO * k, config.pool_size)}, or "
        "call `set_prompt_length` after training, unless this is intended.",
        UserWarning,
        stacklevel=3,
    )


def warn_of_untrained_length(config: ListenConfig, prompt_length: int) -> None:
    """Warns if a trained adapter is used with more prompts than it was trained with, or with another fixed number."""
    maximum = config.max_train_prompt_length
    if prompt_length == maximum or (config.stochastic_prompt_length and prompt_length < maximum):
        return
    trained = f"1 to {maximum}" if config.stochastic_prompt_length else str(maximum)
    warnings.warn(
        f"The adapter was trained with {trained} prompts, and `prompt_length` is now {prompt_length}. Its answers may be "
        "much worse. Train with `stochastic_prompt_length=True` and a `max_train_prompt_length` of at least the largest "
        "number that you use at inference.",
        UserWarning,
        stacklevel=3,
    )
