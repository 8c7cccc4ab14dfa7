"""A selector of our own, in which every prompt has its place."""

from __future__ import annotations

import torch

from .config import is_integer
from .pool import cluster_centers
from .selectors import Selection, Selector, best_prompts, cosines, register_selector


@register_selector("grouped")
class GroupedSelector(Selector):
    """
    The best prompt of each of several groups of the pool (ours).

    The pool falls into `num_groups` groups of equal size, one after the other. The prompt at place j is the best of group
    j by cosine similarity; past the last group, the second best of each, and so on. A value so always stands at the same
    place of the prompt (as long as k is at most `num_groups`), where a causal decoder sees it at the same position. Where
    places follow the order of scores, as with the other selectors, the value that one input has first another one has
    seventh, and each value learns to serve everywhere.

    With one group this is [`SimilaritySelector`]. Groups of two prompts (`num_groups = prompt_length = 40` for a pool of
    80) are a good start: in our benchmark larger ones divided the tasks more sharply, and carried worse to new inputs.

    Keys that are started from real queries are clustered for each group anew, so that each group covers all of them.

    Args:
        num_groups (`int`, defaults to 40): if it does not divide `pool_size`, the first groups have one prompt more;
            if the pool is smaller, every prompt is a group.

    Raises:
        ValueError: for fewer than one group.
    """

    def __init__(self, num_groups: int = 40) -> None:
        if not is_integer(num_groups) or num_groups < 1:
            raise ValueError(f"`num_groups` must be an integer of at least 1, got {num_groups!r}.")
        self.num_groups = num_groups

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> Selection:
        pool_size = keys.shape[0]
        similarity = cosines(query, keys)
        sizes = torch.tensor(self._group_sizes(pool_size), device=keys.device)
        group = torch.arange(len(sizes), device=keys.device).repeat_interleave(sizes, output_size=pool_size)
        within = torch.arange(pool_size, device=keys.device) - (sizes.cumsum(0) - sizes)[group]
        ranked = best_prompts(similarity, pool_size, bias)
        # Group by group, the best of each first; then the first of all groups, the second of all groups, ...
        ranked = ranked.gather(-1, group[ranked].argsort(dim=-1, stable=True))
        indices = ranked[:, (within * len(sizes) + group).argsort()[:k]]
        return Selection(indices=indices, scores=similarity.gather(-1, indices))

    def initial_keys(self, queries: torch.Tensor, pool_size: int, seed: int) -> torch.Tensor:
        # Another seed for each group, so that groups draw their borders at different places.
        centers = [
            cluster_centers(queries, size, seed=1000 * seed + group)
            for group, size in enumerate(self._group_sizes(pool_size))
        ]
        return torch.cat(centers)

    def _group_sizes(self, pool_size: int) -> list[int]:
        num_groups = min(self.num_groups, pool_size)
        size, larger = divmod(pool_size, num_groups)
        return [size + (group < larger) for group in range(num_groups)]
