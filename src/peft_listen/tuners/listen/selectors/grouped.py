"""Grouped selector (not part of the paper): the best prompt of each group, at a fixed position."""

from __future__ import annotations

import torch

from ..config import is_integer
from .base import Selection, Selector, best_prompts, cosines, register_selector
from .clustering import cluster_centers


@register_selector("grouped")
class GroupedSelector(Selector):
    """
    Selects the best prompt of each of several groups of the pool (ours).

    The pool is split into `num_groups` consecutive groups of equal size. The prompt at position j is the best of group
    j by cosine similarity; positions after the last group get the second best of each group, and so on. As long as k is
    at most `num_groups`, a value is always at the same position of the prompt, and a causal decoder always processes
    it at that position. With the other selectors the positions follow the order of the scores, so a value must work at
    every position.

    With one group, this is [`SimilaritySelector`]. Groups of two prompts (`num_groups = prompt_length = 40` for a pool
    of 80) are a good starting point: in our benchmark, larger groups separated the tasks more and generalized less
    well to new inputs.

    [`initial_keys`] clusters the queries separately for each group, so that each group covers all queries.

    Args:
        num_groups (`int`, defaults to 40): if it does not divide `pool_size`, the first groups have one more prompt;
            if the pool is smaller, every prompt is a group.

    Raises:
        ValueError: if `num_groups` is not an integer of at least 1.
    """

    def __init__(self, num_groups: int = 40) -> None:
        if not is_integer(num_groups) or num_groups < 1:
            raise ValueError(f"`num_groups` must be an integer of at least 1, got {num_groups!r}.")
        self.num_groups = num_groups

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        pool_size = keys.shape[0]
        similarity = cosines(query, keys)
        sizes = torch.tensor(self._group_sizes(pool_size), device=keys.device)
        group = torch.arange(len(sizes), device=keys.device).repeat_interleave(sizes, output_size=pool_size)
        within = torch.arange(pool_size, device=keys.device) - (sizes.cumsum(0) - sizes)[group]
        ranked = best_prompts(similarity, pool_size)
        # Group by group, the best of each first; then the first of all groups, the second of all groups, ...
        ranked = ranked.gather(-1, group[ranked].argsort(dim=-1, stable=True))
        indices = ranked[:, (within * len(sizes) + group).argsort()[:k]]
        return Selection(indices=indices, scores=similarity.gather(-1, indices))

    def initial_keys(self, queries: torch.Tensor, pool_size: int, seed: int) -> torch.Tensor:
        # A different seed per group gives each group different cluster boundaries.
        centers = [
            cluster_centers(queries, size, seed=1000 * seed + group)
            for group, size in enumerate(self._group_sizes(pool_size))
        ]
        return torch.cat(centers)

    def _group_sizes(self, pool_size: int) -> list[int]:
        num_groups = min(self.num_groups, pool_size)
        size, larger = divmod(pool_size, num_groups)
        return [size + (group < larger) for group in range(num_groups)]
