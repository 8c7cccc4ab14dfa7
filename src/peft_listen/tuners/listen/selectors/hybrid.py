"""Hybrid selector (not part of the paper): between similarity and residual, weighted as in attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .base import Selection, Selector, register_selector
from .pursuit import MatchingPursuit


@register_selector("hybrid")
class HybridSelector(Selector):
    """
    Combines the three selectors of the paper (ours): selection between similarity and residual, weights as in attention.

    *Selection.* Similarity selects near-duplicates of one key. The residual selector, once the first keys have explained
    the query, ranks the remaining keys by a residual that is close to zero. Here, `step_size` scales the component
    that is subtracted from the query for each selected key: `r ← r - step_size · (r·k̂) k̂`. 0 gives the selection of
    [`SimilaritySelector`], 1 that of [`ResidualSelector`]. Such steps are known from forward stagewise regression and
    boosting (Efron et al., 2004; Bühlmann and Yu, 2003).

    *Weights.* The selected values are scaled by `softmax(cos(q, k) / temperature) · k`, whose mean is 1. Through the
    weights, the language-model loss also trains the keys, unlike with similarity and residual. The logits of the
    attention selector, which the paper found unstable with a stochastic prompt length, grow with the norm of the
    queries; a cosine is bounded, and the ratio of two weights is at most `exp(2 / temperature)` (7.4 at 1), for every
    k.

    Properties: the limits of `step_size` and the bound hold exactly, and on clustered keys the selected keys are less
    similar to each other than those of similarity and closer to the query than those of the residual selector
    (`tests/tuners/listen/test_hybrid_selector.py`). On the six tasks of `benchmarks/mini_listen`, with a pool of 380
    prompts, its validation loss was between those of attention and of similarity (one seed; see the table of selectors
    in `benchmarks/FINDINGS.md`).

    Args:
        step_size (`float`, defaults to 0.5): fraction of a selected key's component that is subtracted, from 0 to 1.
        temperature (`float`, defaults to 1.0): divides the cosines; above 1, the weights are more uniform.

    Raises:
        ValueError: for a `step_size` outside 0 to 1, or a `temperature` that is not above 0.
    """

    keys_receive_gradient = True

    def __init__(self, step_size: float = 0.5, temperature: float = 1.0) -> None:
        if not 0 <= step_size <= 1:
            raise ValueError(f"`step_size` must be from 0 to 1, got {step_size!r}.")
        if not temperature > 0:
            raise ValueError(f"`temperature` must be above 0, got {temperature!r}.")
        self.temperature = temperature
        self._pursuit = MatchingPursuit(step_size)

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        indices, scores = self._pursuit(query, keys, k)
        unit_query = F.normalize(query, dim=-1, eps=1e-6).unsqueeze(1)  # [batch, 1, d]
        cosines = (unit_query * F.normalize(keys[indices], dim=-1, eps=1e-6)).sum(dim=-1)  # [batch, k]
        return Selection(indices=indices, scores=scores, weights=(cosines / self.temperature).softmax(dim=-1) * k)
