"""Position limit of a decoder, which applies to prompts and tokens together."""

from __future__ import annotations

import warnings

import torch
from torch import nn


class PositionLimit:
    """
    Checks that prompts and tokens fit into the positions of a decoder.

    A decoder with a table of learned positions (GPT-2, OPT) cannot process more positions than the table has:
    exceeding the limit is an error. A decoder with computed positions (rotary ones, for instance) can, with worse
    outputs: exceeding the limit gives a warning, once.

    Args:
        backbone (`nn.Module`): the decoder. Its configuration is read for `max_position_embeddings`; without it there is
            no limit.
    """

    def __init__(self, backbone: nn.Module) -> None:
        config = getattr(backbone, "config", None)
        limit = None if getattr(config, "alibi", False) else getattr(config, "max_position_embeddings", None)
        self.limit: int | None = limit if isinstance(limit, int) and limit > 0 else None
        self.is_learned = self.limit is not None and _has_position_table(backbone, self.limit)
        self._warned = False

    def check(
        self, num_prompts: int, past_length: int, num_tokens: int, attention_mask: torch.Tensor | None = None
    ) -> None:
        """
        Checks one forward pass.

        Args:
            num_prompts (`int`): prompts of each row, in the cache or to be prepended.
            past_length (`int`): tokens in the cache, without the prompts.
            num_tokens (`int`): tokens of the input.
            attention_mask (`torch.Tensor` of shape `(batch_size, past_length + num_tokens)`, *optional*):
                1 for real tokens. Padding does not count.

        Raises:
            ValueError: if the decoder has learned positions and the limit is exceeded.
        """
        if self.limit is None or num_prompts + past_length + num_tokens <= self.limit:
            return
        length = past_length + num_tokens
        if attention_mask is not None:
            length = int(attention_mask.long().sum(dim=-1).max())
        if num_prompts + length <= self.limit:
            return
        message = (
            f"The input has {length} tokens and {num_prompts} prompts, which are {length + num_prompts} positions, but the "
            f"model has {self.limit} (`max_position_embeddings`). Shorten the input, or use fewer prompts "
            "(`prompt_length`, and `max_train_prompt_length` in training)."
        )
        if self.is_learned:
            raise ValueError(message)
        self._warn(message)

    def check_generation(
        self, num_prompts: int, num_tokens: int, max_new_tokens: int, attention_mask: torch.Tensor | None = None
    ) -> int:
        """
        Warns before a generation that may exceed the limit.

        Args:
            num_prompts (`int`): prompts of each row.
            num_tokens (`int`): tokens of the input, padding included.
            max_new_tokens (`int`): maximum number of tokens to generate.
            attention_mask (`torch.Tensor` of shape `(batch_size, num_tokens)`, *optional*): 1 for real tokens.

        Returns:
            `int`: the number of new tokens that the model can compute; that of the argument unless it has learned
            positions.
        """
        if self.limit is None or num_prompts + num_tokens + max_new_tokens <= self.limit:
            return max_new_tokens
        if attention_mask is not None:
            num_tokens = int(attention_mask.long().sum(dim=-1).max())
            if num_prompts + num_tokens + max_new_tokens <= self.limit:
                return max_new_tokens
        # The last token is not an input any more.
        allowed = self.limit - num_prompts - num_tokens + 1
        is_limited = self.is_learned and 0 < allowed < max_new_tokens
        self._warn(
            f"{num_tokens} tokens, {num_prompts} prompts and up to {max_new_tokens} new tokens are "
            f"{num_tokens + num_prompts + max_new_tokens} positions, but the model has {self.limit} "
            "(`max_position_embeddings`). Prompts count toward them. "
            + (
                f"The generation stops after {allowed} new tokens."
                if is_limited
                else "Lower `max_new_tokens`, or use fewer prompts."
            )
        )
        return allowed if is_limited else max_new_tokens

    def _warn(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            warnings.warn(message, UserWarning, stacklevel=3)


def _has_position_table(backbone: nn.Module, limit: int) -> bool:
    # OPT's table has two additional entries, for padding.
    return any(
        isinstance(module, nn.Embedding) and limit <= module.num_embeddings <= limit + 8 and name.endswith(_TABLES)
        for name, module in backbone.named_modules()
    )


# Names of tables of learned positions in transformers' decoders.
_TABLES = ("wpe", "embed_positions", "position_embeddings", "embed_position", "wpe_embeddings", "position_embedding")
