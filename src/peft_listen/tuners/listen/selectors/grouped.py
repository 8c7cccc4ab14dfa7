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
        num_groups, size, larger = self._division(pool_size)
        # Computed on the device: a copy of the sizes from the CPU would wait for it.
        prompt = torch.arange(pool_size, device=keys.device)
        first_of_smaller = larger * (size + 1)
        group = torch.where(
            prompt < first_of_smaller, prompt // (size + 1), larger + (prompt - first_of_smaller) // size
        )
        within = prompt - (group * size + group.clamp_max(larger))
        ranked = best_prompts(similarity, pool_size)
        # Group by group, the best of each first; then the first of all groups, the second of all groups, ...
        ranked = ranked.gather(-1, group[ranked].argsort(dim=-1, stable=True))
        indices = ranked[:, (within * num_groups + group).argsort()[:k]]
        return Selection(indices=indices, scores=similarity.gather(-1, indices))

    def initial_keys(self, queries: torch.Tensor, pool_size: int, seed: int) -> torch.Tensor:
        # A different seed per group gives each group different cluster boundaries.
        centers = [
            cluster_centers(queries, size, seed=1000 * seed + group)
            for group, size in enumerate(self._group_sizes(pool_size))
        ]
        return torch.cat(centers)

    def _group_sizes(self, pool_size: int) -> list[int]:
        num_groups, size, larger = self._division(pool_size)
        return [size + (group < larger) for group in range(num_groups)]

    def _division(self, pool_size: int) -> tuple[int, int, int]:
        """Number of groups, size of a group, and number of the first groups that have one prompt more."""
        num_groups = min(self.num_groups, pool_size)
        return num_groups, *divmod(pool_size, num_groups)
