"""Matching pursuit over the keys of a pool, by their Gram matrix."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F

from ..synchronization import reading_is_free


class KeyGeometry(NamedTuple):
    """
    Quantities that depend only on the keys and are shared by all queries.

    Attributes:
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): a copy.
        norms (`torch.FloatTensor` of shape `(pool_size,)`): at least 1e-12.
        gram (`torch.FloatTensor` of shape `(pool_size, pool_size)`): pairwise cosines of the keys.
    """

    keys: torch.Tensor
    norms: torch.Tensor
    gram: torch.Tensor


class MatchingPursuit:
    """
    Repeatedly selects the key that is most similar to the residual of the query.

    On the CPU the Gram matrix costs about a hundred times the rest, so it is cached until the keys change (compared by
    value): in evaluation and generation it is computed once, in training once per optimizer step. On other devices it is
    computed each time, which takes less time than waiting for the result of the comparison.

    Args:
        step_size (`float`, defaults to 1.0):
            Fraction of a selected key's component that is subtracted from the query, from 0 to 1. 1 is matching
            pursuit (Mallat and Zhang, 1993); 0 subtracts nothing, and ranks keys by their similarity to the query;
            values in between are the smaller steps of forward stagewise regression (Efron et al., 2004).
    """

    def __init__(self, step_size: float = 1.0) -> None:
        self.step_size = step_size
        self._geometry: KeyGeometry | None = None

    def __getstate__(self) -> dict[str, float]:
        return {"step_size": self.step_size}

    def __setstate__(self, state: dict[str, float]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    @torch.no_grad()
    def __call__(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Selects `k` keys for each row, in O(pool_size) per row and selected key.

        Args:
            query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`)
            keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`)
            k (`int`): from 1 to `pool_size`.

        Returns:
            `tuple[torch.LongTensor, torch.FloatTensor]`: the selected keys in their order and, for each, its cosine to
            the residual at the time of its selection, both of shape `(batch_size, k)` and without gradient.
        """
        geometry = self._geometry_of(keys)
        # Products with the residual; that of a selected key is set to -inf.
        products = F.normalize(query, dim=-1) @ geometry.keys.T / geometry.norms  # [batch, pool_size]
        squared_norm = torch.ones_like(products[:, :1])  # of the residual
        indices, coefficients, squared_norms = [], [], []
        for _ in range(k):
            best = products.argmax(dim=-1, keepdim=True)  # [batch, 1]
            coefficient = products.gather(-1, best)
            indices.append(best)
            coefficients.append(coefficient)
            squared_norms.append(squared_norm)
            if self.step_size > 0:
                products.addcmul_(coefficient, geometry.gram[best.squeeze(-1)], value=-self.step_size)
                subtracted = self.step_size * (2 - self.step_size) * coefficient.square()
                squared_norm = (squared_norm - subtracted).clamp_min(0)
            products.scatter_(-1, best, -torch.inf)
        norms = torch.cat(squared_norms, dim=-1).sqrt().clamp_min(1e-6)
        return torch.cat(indices, dim=-1), torch.cat(coefficients, dim=-1) / norms

    def _geometry_of(self, keys: torch.Tensor) -> KeyGeometry:
        geometry = self._geometry if reading_is_free(keys.device) else None
        # Compared by value: a tensor's version counter does not register writes through `.data`.
        if geometry is not None and _are_equal(geometry.keys, keys):
            return geometry
        norms = torch.linalg.vector_norm(keys, dim=-1).clamp_min(1e-12)
        unit_keys = keys / norms.unsqueeze(-1)
        geometry = KeyGeometry(keys.detach().clone(), norms, unit_keys @ unit_keys.T)
        if reading_is_free(keys.device):
            # One assignment: another thread reads either the old or the new geometry, never a mixture.
            self._geometry = geometry
        return geometry


def _are_equal(first: torch.Tensor, second: torch.Tensor) -> bool:
    return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)
