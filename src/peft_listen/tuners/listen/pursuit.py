"""Matching pursuit over the keys of a pool, by their Gram matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F


class KeyGeometry(NamedTuple):
    """
    What the pursuit needs to know of the keys.

    Attributes:
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): a copy.
        norms (`torch.FloatTensor` of shape `(pool_size,)`): at least 1e-12.
        gram (`torch.FloatTensor` of shape `(pool_size, pool_size)`): cosine of each two keys.
    """

    keys: torch.Tensor
    norms: torch.Tensor
    gram: torch.Tensor


class MatchingPursuit:
    """
    The key most similar to what the keys chosen before have left of the query, again and again.

    The Gram matrix costs a hundred times the rest, so it is kept for as long as the keys are the same, number by number:
    in evaluation and generation it is made once, in training once an optimizer step.

    Args:
        step_size (`float`, defaults to 1.0):
            Share of a chosen key's part that is taken out of the query, from 0 to 1. 1 is matching pursuit (Mallat and
            Zhang, 1993); 0 takes nothing out, and ranks keys by their similarity to the query; between them are the
            smaller steps of forward stagewise regression (Efron et al., 2004).
    """

    def __init__(self, step_size: float = 1.0) -> None:
        self.step_size = step_size
        self._geometry: KeyGeometry | None = None

    def __getstate__(self) -> dict[str, float]:
        return {"step_size": self.step_size}

    def __setstate__(self, state: dict[str, float]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @torch.no_grad()
    def __call__(
        self, query: torch.Tensor, keys: torch.Tensor, k: int, bias: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Chooses `k` keys for each row, in O(pool_size) per row and choice.

        Args:
            query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`)
            keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`)
            k (`int`): from 1 to `pool_size`.
            bias (`torch.FloatTensor` of shape `(pool_size,)` or `(batch_size, pool_size)`, *optional*):
                Added to the cosines before each choice.

        Returns:
            `tuple[torch.LongTensor, torch.FloatTensor]`: the chosen keys in their order and, of each, the cosine to
            what was left of the query when it was chosen, both of shape `(batch_size, k)`. No gradient runs through.
        """
        geometry = self._geometry_of(keys)
        # Products with what is left of the query; that of a chosen key is -inf, and stays so.
        products = F.normalize(query, dim=-1) @ geometry.keys.T / geometry.norms  # [batch, pool_size]
        squared_norm = torch.ones_like(products[:, :1])  # of what is left
        indices, coefficients, squared_norms = [], [], []
        for _ in range(k):
            ranked = products if bias is None else products + bias * squared_norm.sqrt()
            best = ranked.argmax(dim=-1, keepdim=True)  # [batch, 1]
            coefficient = products.gather(-1, best)
            indices.append(best)
            coefficients.append(coefficient)
            squared_norms.append(squared_norm)
            if self.step_size > 0:
                products.addcmul_(coefficient, geometry.gram[best.squeeze(-1)], value=-self.step_size)
                taken = self.step_size * (2 - self.step_size) * coefficient.square()
                squared_norm = (squared_norm - taken).clamp_min(0)
            products.scatter_(-1, best, -torch.inf)
        left = torch.cat(squared_norms, dim=-1).sqrt().clamp_min(1e-6)
        return torch.cat(indices, dim=-1), torch.cat(coefficients, dim=-1) / left

    def _geometry_of(self, keys: torch.Tensor) -> KeyGeometry:
        geometry = self._geometry
        # Compared by value: a tensor's version counter does not see what is written through `.data`.
        if geometry is not None and _are_equal(geometry.keys, keys):
            return geometry
        norms = torch.linalg.vector_norm(keys, dim=-1).clamp_min(1e-12)
        unit_keys = keys / norms.unsqueeze(-1)
        self._geometry = KeyGeometry(keys.detach().clone(), norms, unit_keys @ unit_keys.T)
        return self._geometry


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)
