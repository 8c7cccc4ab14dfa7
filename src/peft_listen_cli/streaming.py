"""Prints an answer while it is generated."""

from typing import Any

import torch
from transformers import TextStreamer


class AnswerStreamer(TextStreamer):
    """
    Prints the tokens of an answer to stdout, without the prompt, special tokens and the end token of answers.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The model's tokenizer.
        end_token_id (`int`, *optional*): The end of answers, which some tokenizers do not mark as special.
    """

    def __init__(self, tokenizer: Any, end_token_id: int | None = None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.end_token_id = end_token_id

    def put(self, value: torch.Tensor) -> None:
        """Takes the prompt first, `(1, length)`, and then the new tokens, `(1,)`."""
        is_prompt = self.next_tokens_are_prompt
        if not is_prompt and self.end_token_id is not None:
            value = value[value != self.end_token_id]
        if is_prompt or value.numel() > 0:
            super().put(value)
