"""A selector of our own, in which every prompt has its place."""

from __future__ import annotations

from typing import Optional

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence

from .pool import cluster_centers
from .selectors import Selection, Selector, register_selector


@register_selector("grouped")
class GroupedSelector(Selector):
    """
    The best prompt of each of several groups of the pool (ours).

    The pool falls into `num_groups` groups of equal size, one after the other. The prompt at place j is the best of group
    j by cosine similarity; past the last group, the second best of each, and so on. A value so always stands at the same
    place of the prompt (as long as k is at most `num_groups`), where a causal decoder sees it at the same position. Where
    places follow the order of scores, as with the other selectors, the value that
    one input has first another one has seventh, and each value learns to serve everywhere.

    With one group this is [`SimilaritySelector`]. Groups of as many prompts as there are kinds of input or somewhat more
    are a good choice: `num_groups = prompt_length = 40` for a pool of 400.

    Keys that are started from real queries are clustered for each group anew, so that each group covers all of them.

    Args:
        num_groups (`int`, defaults to 40): if it does not divide `pool_size`, the first groups have one prompt more;
            if the pool is smaller, every prompt is a group.

    Raises:
        ValueError: for fewer than one group.
    """

    def __init__(self, num_groups: int = 40) -> None:
        if not isinstance(num_groups, int) or isinstance(num_groups, bool) or num_groups < 1:
            raise ValueError(f"`num_groups` must be an integer of at least 1, got {num_groups!r}.")
        self.num_groups = num_groups

    def select(
        self, query: torch.Tensor, keys: torch.Tensor, k: int, bias: Optional[torch.Tensor] = None
    ) -> Selection:
        scores = F.normalize(query, dim=-1, eps=1e-6) @ F.normalize(keys, dim=-1, eps=1e-6).T  # [batch, pool_size]
        if bias is not None:
            scores = scores + bias
        # Smaller groups, which are the last ones, are filled up with a prompt that loses to all.
        members = pad_sequence(self._groups(keys.shape[0]), batch_first=True, padding_value=-1).to(scores.device)
        by_group = scores[:, members].masked_fill(members < 0, -torch.inf)  # [batch, num_groups, group_size]
        rounds = -(-k // len(members))  # how many of each group a prompt of length k reaches
        best, order = (part[..., :rounds] for part in by_group.sort(dim=-1, descending=True, stable=True))
        indices = members.expand_as(by_group).gather(-1, order)
        return Selection(
            indices=indices.transpose(1, 2).flatten(1)[:, :k], scores=best.transpose(1, 2).flatten(1)[:, :k]
        )

    def initial_keys(self, queries: torch.Tensor, pool_size: int, seed: int) -> torch.Tensor:
        # Another seed for each group, so that groups draw their borders at different places.
        centers = [
            cluster_centers(queries, len(members), seed=1000 * seed + group)
            for group, members in enumerate(self._groups(pool_size))
        ]
        return torch.cat(centers)

    def _groups(self, pool_size: int) -> list[torch.Tensor]:
        return list(torch.arange(pool_size).tensor_split(min(self.num_groups, pool_size)))
