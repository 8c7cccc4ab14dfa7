"""How a pool of keys and values begins: from the vocabulary, at random, or from real queries."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from peft.utils.integrations import gather_params_ctx
from torch import nn

from .config import ListenConfig


def embedding_size(embedding: nn.Module, model_config: object) -> int:
    """Width of the decoder's input embeddings. Read from the module's attribute or the configuration, never from the
    weight's shape, which is that of a shard under ZeRO-3 or FSDP."""
    size = getattr(embedding, "embedding_dim", None)
    if size is None:
        get_text_config = getattr(model_config, "get_text_config", None)
        text_config = model_config if get_text_config is None else get_text_config(decoder=True)
        size = getattr(text_config, "hidden_size", None)
    if size is None:
        raise ValueError(
            f"Cannot tell the embedding size of {type(embedding).__name__}: it has no `embedding_dim`, and the model's "
            "configuration has no `hidden_size`. Give the embedding module an `embedding_dim` attribute."
        )
    return int(size)


@torch.no_grad()
def vocabulary_embeddings(
    embedding: nn.Module, model_config: object, count: int, generator: torch.Generator
) -> torch.Tensor | None:
    """
    Embeddings of random ordinary tokens, as the decoder itself would embed them (scaling included).

    Args:
        embedding (`nn.Module`): the decoder's input embedding.
        model_config: read for `vocab_size` and for the special tokens to leave out.
        count (`int`): how many.
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
    # Some rows of a vocabulary are unused and zero; drawing a surplus leaves enough after these are dropped.
    token_ids = torch.randint(vocabulary_size, (4 * count + len(special),), generator=generator).tolist()
    ordinary = torch.tensor([i for i in token_ids if i not in special] or token_ids, device=weight.device)
    with gather_params_ctx(weight, modifier_rank=None):
        embeds = _full_tensor(embedding(ordinary)).float()
    embeds = embeds[embeds.isfinite().all(dim=-1) & (embeds.norm(dim=-1) > 1e-6)]
    if embeds.shape[0] == 0:
        return None
    return embeds.repeat(-(-count // embeds.shape[0]), 1)[:count]


def _full_tensor(tensor: torch.Tensor) -> torch.Tensor:
    full_tensor = getattr(tensor, "full_tensor", None)  # a DTensor's
    return tensor if full_tensor is None else full_tensor()


class InitialPool(NamedTuple):
    """
    How an adapter begins, in float32.

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
    pool = _drawn_pool(config, embedding, model_config)
    if config.adds_shared_prompts and config.init_weights is not False:
        # Every prompt begins as the shared one of its place. Random values, for tests, make prompts differ visibly.
        return pool._replace(values=torch.zeros_like(pool.values))
    return pool


def _drawn_pool(config: ListenConfig, embedding: nn.Module, model_config: object) -> InitialPool:
    generator = torch.Generator().manual_seed(config.seed)
    size = embedding_size(embedding, model_config)
    counts = (config.pool_size, config.pool_size, config.num_shared_prompts)
    mean = torch.zeros(size)

    def normal(scale: float) -> InitialPool:
        keys, values, shared = (scale * torch.randn(count, size, generator=generator) for count in counts)
        return InitialPool(keys, values, shared, mean)

    if config.init_weights is False:
        return normal(1.0)
    embeds = [
        vocabulary_embeddings(embedding, model_config, count, generator) if count else torch.zeros(0, size)
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


def with_shared_prompts(mode: str, shared: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """
    The prompts of each row, from those that all rows share and those that were chosen.

    Args:
        mode (`str`): `"prepend"` or `"add"`, `ListenConfig.shared_prompt_mode`.
        shared (`torch.FloatTensor` of shape `(num_shared_prompts, embedding_size)`)
        chosen (`torch.FloatTensor` of shape `(batch_size, k, embedding_size)`)

    Returns:
        `torch.FloatTensor` of shape `(batch_size, num_shared_prompts + k, embedding_size)`, or, where they are added,
        that of `chosen`; chosen prompts beyond the shared ones are then as they are.
    """
    if mode == "prepend":
        return torch.cat([shared.expand(chosen.shape[0], -1, -1), chosen], dim=1)
    missing = max(0, chosen.shape[1] - shared.shape[0])
    return chosen + F.pad(shared[: chosen.shape[1]], (0, 0, 0, missing))


@torch.no_grad()
def cluster_centers(points: torch.Tensor, count: int, seed: int, iterations: int = 25) -> torch.Tensor:
    """
    Centres of a k-means clustering (k-means++ start, Lloyd's iterations), deterministic under `seed`.

    With fewer distinct points than centres, the surplus centres are points moved by a tenth of the points' spread.

    Args:
        points (`torch.FloatTensor` of shape `(num_points, embedding_size)`)
        count (`int`): number of centres.
        seed (`int`)
        iterations (`int`, defaults to 25): at most so many.

    Returns:
        `torch.FloatTensor` of shape `(count, embedding_size)`.
    """
    generator = torch.Generator().manual_seed(seed)
    points = points.float().cpu()
    spread = points.std(dim=0, correction=0) if len(points) > 1 else torch.zeros(points.shape[1])
    centers = points[torch.randint(len(points), (1,), generator=generator)]
    distances = torch.cdist(points, centers).squeeze(-1).square()
    while len(centers) < min(count, len(points)) and float(distances.max()) > 1e-12:
        center = points[torch.multinomial(distances, 1, generator=generator)]
        centers = torch.cat([centers, center])
        distances = torch.minimum(distances, torch.cdist(points, center).squeeze(-1).square())
    for _ in range(iterations):
        nearest = torch.cdist(points, centers).argmin(dim=-1)
        sums = torch.zeros_like(centers).index_add_(0, nearest, points)
        sizes = torch.bincount(nearest, minlength=len(centers)).unsqueeze(-1)
        moved = torch.where(sizes > 0, sums / sizes.clamp_min(1), centers)
        if torch.equal(moved, centers):
            break
        centers = moved
    missing = count - len(centers)
    if missing > 0:
        base = points[torch.randint(len(points), (missing,), generator=generator)]
        noise = torch.randn(base.shape, generator=generator) * (0.1 * spread.clamp_min(1e-4))
        centers = torch.cat([centers, base + noise])
    return centers


# A prompt that is chosen less than this share of the average counts as dead.
DEAD_USAGE = 0.1


@torch.no_grad()
def reseed_dead_prompts(
    keys: torch.Tensor, values: torch.Tensor, usage: torch.Tensor, queries: torch.Tensor
) -> torch.Tensor:
    """
    Moves prompts that are hardly ever chosen to queries that no key is near, in place (ours).

    The query that is farthest from all keys gets a dead key first, and so on, one key a query. The moved prompt begins
    with the value of the prompt that its query matched best until then, so that no answer jumps.

    Args:
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`)
        values (`torch.FloatTensor` of shape `(pool_size, embedding_size)`)
        usage (`torch.FloatTensor` of shape `(pool_size,)`): 1 is the average; moved prompts begin there again.
        queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`): as the keys see them.

    Returns:
        `torch.LongTensor`: indices of the moved prompts.
    """
    dead = (usage < DEAD_USAGE).nonzero().flatten()
    moved = dead[: len(queries)]
    unit_queries = F.normalize(queries.to(keys), dim=-1)
    similarity = unit_queries @ F.normalize(keys, dim=-1).T  # [num_queries, pool_size]
    similarity[:, dead] = -torch.inf
    if len(dead) == len(keys):
        return moved[:0]
    nearest, source = similarity.max(dim=-1)
    for index in moved.tolist():
        lonely = int(nearest.argmin())
        keys[index] = queries[lonely].to(keys)
        values[index] = values[source[lonely]]
        nearest = torch.maximum(nearest, unit_queries @ unit_queries[lonely])
    usage[moved] = 1.0
    return moved
