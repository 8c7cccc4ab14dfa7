"""How many prompts this step: fixed, or drawn."""

from __future__ import annotations

import random

from .config import ListenConfig, check_prompt_length


def draw_prompt_length(seed: int, step: int, maximum: int) -> int:
    """
    The prompt length of one optimizer step, uniform on 1 to `maximum` (stochastic prompt length, arXiv 2505.18517).

    A pure function of its arguments: the same on every rank and micro-batch, and after a resume.
    """
    # Seeding by a string hashes all of it (SHA-512), so neighbouring steps are independent; the sequence is the same
    # on every platform.
    return random.Random(f"{seed}:{step}").randint(1, maximum)


class PromptLength:
    """
    The prompt length of one adapter.

    Args:
        config ([`ListenConfig`]): read for `prompt_length`, `stochastic_prompt_length`, `max_train_prompt_length`,
            `pool_size` and `seed`.
    """

    def __init__(self, config: ListenConfig) -> None:
        self.pool_size = config.pool_size
        self.fixed = config.prompt_length
        self.stochastic = config.stochastic_prompt_length
        self.maximum = config.max_train_prompt_length or config.pool_size
        self.seed = config.seed

    def set_fixed(self, prompt_length: int) -> None:
        """Sets the length used outside training.

        Raises:
            ValueError: if it is less than 1 or more than the pool holds; the message has both numbers.
        """
        check_prompt_length("prompt_length", prompt_length, self.pool_size)
        self.fixed = prompt_length

    def at(self, step: int, training: bool) -> int:
        """The length for this forward pass."""
        if training and self.stochastic:
            return draw_prompt_length(self.seed, step, self.maximum)
        return self.fixed
