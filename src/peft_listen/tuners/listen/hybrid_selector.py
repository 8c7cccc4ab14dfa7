"""A selector of our own, between those of the paper."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .pursuit import MatchingPursuit
from .selectors import Selection, Selector, register_selector


@register_selector("hybrid")
class HybridSelector(Selector):
    """
    All three selectors of the paper in one (ours): chosen between similarity and residual, weighted as in attention.

    *Choice.* Similarity chooses near-copies of one key; the residual selector, when the first keys have explained the
    query, chooses by what is hardly there any more. Here each chosen key's part is taken out of the query by
    `step_size` only: `r ← r - step_size · (r·k̂) k̂`. 0 chooses as [`SimilaritySelector`] does, 1 as [`ResidualSelector`]
    does. Such steps are known from forward stagewise regression and boosting (Efron et al., 2004; Bühlmann and Yu, 2003).

    *Weights.* The chosen values are scaled by `softmax(cos(q, k) / temperature) · k`, whose mean is 1. So the keys learn
    from the language-model loss too, which with similarity and residual does not reach them. The paper's attention,
    which it found unstable with a stochastic prompt length, has logits that grow with the queries' norm; a cosine is
    bounded, and no weight exceeds another more than `exp(2 / temperature)` times (7.4 at 1), however many are chosen.

    What is known: the ends of `step_size` and the bound hold exactly, and on clustered keys the chosen are less alike
    than those of similarity and closer to the query than those of the residual selector
    (`tests/tuners/listen/test_hybrid_selector.py`). It has not been compared with the others on real tasks.

    Args:
        step_size (`float`, defaults to 0.5): share of a chosen key's part that is taken out, from 0 to 1.
        temperature (`float`, defaults to 1.0): divides the cosines; above 1 the weights are more even.

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

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int, bias: torch.Tensor | None = None) -> Selection:
        indices, scores = self._pursuit(query, keys, k, bias)
        unit_query = F.normalize(query, dim=-1, eps=1e-6).unsqueeze(1)  # [batch, 1, d]
        cosines = (unit_query * F.normalize(keys[indices], dim=-1, eps=1e-6)).sum(dim=-1)  # [batch, k]
        return Selection(indices=indices, scores=scores, weights=(cosines / self.temperature).softmax(dim=-1) * k)
