"""Initial keys and values of a pool: from the vocabulary, or at random."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn

from .config import ListenConfig
from .sharding import call_with_whole_weight


def embedding_size(embedding: nn.Module, model_config: object) -> int:
    """Width of the decoder's input embeddings. Read from the module's attribute or the configuration, not from the shape
    of the weight, which is that of a shard under ZeRO-3 or FSDP.

    Raises:
        ValueError: if neither has it.
    """
    size = getattr(embedding, "embedding_dim", None)
    size = _hidden_size(model_config) if size is None else size
    if size is None:
        raise ValueError(
            f"Cannot determine the embedding size of {type(embedding).__name__}: it has no `embedding_dim`, and the model's "
            "configuration has no `hidden_size`. Set `embedding_dim` on the embedding module."
        )
    return int(size)


def hidden_size(model_config: object) -> int:
    """Width of the decoder's layers, which is not that of the embeddings in a decoder that projects them.

    Raises:
        ValueError: if the configuration does not have it.
    """
    size = _hidden_size(model_config)
    if size is None:
        raise ValueError(
            f"Cannot determine the width of the decoder's layers: its configuration, {type(model_config).__name__}, has no "
            "`hidden_size`. Set it."
        )
    return size


def _hidden_size(model_config: object) -> int | None:
    get_text_config = getattr(model_config, "get_text_config", None)
    text_config = model_config if get_text_config is None else get_text_config(decoder=True)
    size = getattr(text_config, "hidden_size", None)
    return None if size is None else int(size)


@torch.no_grad()
def vocabulary_embeddings(
    embedding: nn.Module, model_config: object, count: int, generator: torch.Generator
) -> torch.Tensor | None:
    """
    Embeddings of random ordinary tokens, computed by the decoder's own embedding module (scaling included).

    Args:
        embedding (`nn.Module`): the decoder's input embedding.
        model_config: read for the special tokens to exclude.
        count (`int`): number of embeddings.
        generator (`torch.Generator`): on the CPU.

    Returns:
        `torch.FloatTensor` of shape `(count, embedding_size)`, float32 on the embedding's device, or `None` if the
        embedding holds no values yet (meta device).
    """
    weight: torch.Tensor = embedding.weight  # type: ignore[assignment]
    if weight.device.type == "meta":
        return None
    vocabulary_size = int(getattr(embedding, "num_embeddings", 0) or weight.shape[0])
    special: set[int | None] = set()
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        token_id: int | list[int] | None = getattr(model_config, name, None)
        special.update(token_id if isinstance(token_id, list) else [token_id])
    # Some rows of a vocabulary are unused and zero. They are dropped below, so more tokens are drawn than needed.
    draws = torch.randint(vocabulary_size, (4 * count + len(special),), generator=generator, device=generator.device)
    token_ids = draws.tolist()
    ordinary = torch.tensor([i for i in token_ids if i not in special] or token_ids, device=weight.device)
    embeds = call_with_whole_weight(embedding, ordinary).float()
    embeds = embeds[embeds.isfinite().all(dim=-1) & (embeds.norm(dim=-1) > 1e-6)]
    if embeds.shape[0] == 0:
        return None
    return embeds.repeat(-(-count // embeds.shape[0]), 1)[:count]


class InitialPool(NamedTuple):
    """
    Initial tensors of a pool, in float32.

    Attributes:
        keys, values (`torch.FloatTensor` of shape `(pool_size, embedding_size)`)
        shared_values (`torch.FloatTensor` of shape `(num_shared_prompts, embedding_size)`)
        query_mean (`torch.FloatTensor` of shape `(embedding_size,)`)
    """

    keys: torch.Tensor
    values: torch.Tensor
    shared_values: torch.Tensor
    query_mean: torch.Tensor


@torch.no_grad()
def initial_pool(config: ListenConfig, embedding: nn.Module, model_config: object) -> InitialPool:
    """
    Keys, values and query mean of a new adapter, deterministic in `config.seed`.

    Args:
        config ([`ListenConfig`]): read for `pool_size`, `num_shared_prompts`, `shared_prompt_mode`, `init_weights`,
            `center_queries` and `seed`.
        embedding (`nn.Module`): the decoder's input embedding.
        model_config: the model's configuration.
    """
    pool = _random_pool(config, embedding, model_config)
    if config.adds_shared_prompts and config.init_weights is not False:
        # Initially, every prompt equals the shared prompt at its position. With `init_weights=False`, for tests, the
        # values stay random, which makes the prompts differ visibly.
        return pool._replace(values=torch.zeros_like(pool.values))
    return pool


def _random_pool(config: ListenConfig, embedding: nn.Module, model_config: object) -> InitialPool:
    generator = torch.Generator().manual_seed(config.seed)
    size = embedding_size(embedding, model_config)
    counts = (config.pool_size, config.pool_size, config.num_shared_prompts)
    # On the CPU even if another device is torch's default: the generator is there.
    mean = torch.zeros(size, device=generator.device)

    def normal(scale: float) -> InitialPool:
        keys, values, shared = (
            scale * torch.randn(count, size, generator=generator, device=generator.device) for count in counts
        )
        return InitialPool(keys, values, shared, mean)

    if config.init_weights is False:
        return normal(1.0)
    embeds = [
        vocabulary_embeddings(embedding, model_config, count, generator) if count else mean.new_zeros(0, size)
        for count in counts
    ]
    if config.init_weights == "normal" or any(part is None for part in embeds):
        scale = getattr(model_config, "initializer_range", 0.02) if embeds[0] is None else float(embeds[0].std())
        return normal(scale)
    keys, values, shared_values = (part for part in embeds if part is not None)
    if config.center_queries:
        mean = keys.mean(dim=0)
        keys = keys - mean
    return InitialPool(keys, values, shared_values, mean)
