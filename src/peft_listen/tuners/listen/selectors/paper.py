"""The three selectors of the paper (arXiv 2505.18517): similarity, attention and residual."""

from __future__ import annotations

import torch

from .base import Selection, Selector, best_prompts, cosines, register_selector
from .pursuit import MatchingPursuit


@register_selector("similarity")
class SimilaritySelector(Selector):
    """Selects the `k` keys with the highest cosine similarity to the query (arXiv 2505.18517), in O(pool_size · d) per
    row."""

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        similarity = cosines(query, keys)
        indices = best_prompts(similarity, k)
        return Selection(indices=indices, scores=similarity.gather(-1, indices))


@register_selector("attention")
class AttentionSelector(Selector):
    """
    Selects the `k` keys with the highest attention weight `softmax(q K^T / sqrt(d))` (arXiv 2505.18517).

    The selected values are scaled by their weights, renormalized over the selected keys and multiplied by `k`, which
    keeps the mean factor at 1 for every `k` (ours). Through the weights, the keys get a gradient from the
    language-model loss. The paper found this selector unstable with a stochastic prompt length; here it is computed in
    float32.

    Args:
        temperature (`float`, defaults to 1.0): divides the logits; above 1, the weights are more uniform.

    Raises:
        ValueError: if `temperature` is not above 0.
    """

    keys_receive_gradient = True

    def __init__(self, temperature: float = 1.0) -> None:
        if not temperature > 0:
            raise ValueError(f"`temperature` must be above 0, got {temperature!r}.")
        self.temperature = temperature

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        logits = query @ keys.T / (keys.shape[-1] ** 0.5 * self.temperature)  # [batch, pool_size]
        indices = best_prompts(logits, k)
        scores = logits.softmax(dim=-1).gather(-1, indices)
        weights = logits.gather(-1, indices).softmax(dim=-1) * k
        return Selection(indices=indices, scores=scores, weights=weights)


@register_selector("residual")
class ResidualSelector(Selector):
    """
    Greedy matching pursuit (arXiv 2505.18517; the exact formula is ours): `k` times, selects the key that is most
    similar to the residual of the query after projection onto the keys selected before.

    The similarity is signed: a key opposite to the residual does not match, and the first selected key is that of
    [`SimilaritySelector`]. Uses the Gram matrix of the keys, with O(pool_size) per row and selected key; see
    [`MatchingPursuit`].
    """

    def __init__(self) -> None:
        self._pursuit = MatchingPursuit()

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        indices, scores = self._pursuit(query, keys, k)
        return Selection(indices=indices, scores=scores)
