"""A training step of a language model with an adapter, and the part of it in which LISTEN selects prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from .ratios import Call


Inputs = dict[str, torch.Tensor]


def make_inputs(
    vocab_size: int, rows: int, length: int, device: torch.device | str, seed: int = 0, labels: bool = False
) -> Inputs:
    """
    Random tokens, the same for the same numbers.

    Args:
        vocab_size (`int`)
        rows (`int`)
        length (`int`): tokens of each row.
        device (`torch.device` or `str`)
        seed (`int`, defaults to 0)
        labels (`bool`, defaults to `False`): whether there are labels, for the second half of each row.
    """
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(vocab_size, (rows, length), generator=generator).to(device)
    inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    if labels:
        inputs["labels"] = input_ids.clone()
        inputs["labels"][:, : length // 2] = -100
    return inputs


def train_step(model: Any, inputs: Mapping[str, torch.Tensor]) -> Call:
    """Forward and backward pass, and a step of AdamW on what is trained."""
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(**inputs, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def selection_step(pool: Any, embeds: torch.Tensor, inputs: Mapping[str, torch.Tensor]) -> Call:
    """
    What LISTEN computes in a training step before the language model runs: query, selection, prompts and key loss, forward
    and backward.

    Args:
        pool ([`~peft_listen.tuners.listen.pool.PromptPool`])
        embeds (`torch.Tensor` of shape `(rows, length, embedding_size)`): embeddings of the tokens.
        inputs (`Mapping[str, torch.Tensor]`): with labels.
    """
    pool.train()

    def select() -> None:
        output = pool(embeds, inputs["attention_mask"], inputs["labels"])
        (output.prompts.sum() + output.key_loss_per_row.mean()).backward()
        pool.zero_grad()

    return select
