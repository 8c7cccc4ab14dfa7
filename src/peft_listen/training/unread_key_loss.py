"""Trains the keys under trainers that do not read `outputs.loss`, which contains the key loss."""

from __future__ import annotations

import torch

from ..tuners.listen import PromptPool
from ..tuners.listen.running_statistics import is_distributed


class UnreadKeyLoss:
    """
    Gradient of the key loss for trainers that compute their loss from the model's other outputs, such as TRL's trainers of
    preferences.

    The key loss depends on no other parameter than the keys, so its gradient needs no backward pass through the model. It
    is that of the mean over all rows of an optimizer step, of all micro-batches and processes, times the configuration's
    `key_loss_weight`.

    Args:
        pool ([`PromptPool`]): of the trained adapter.
    """

    def __init__(self, pool: PromptPool) -> None:
        self._pool = pool
        self._sums: torch.Tensor | None = (
            None  # [pool_size * embedding_size + 1]: the gradient, and the number of rows
        )

    def add(self, per_row: torch.Tensor) -> None:
        """
        Adds the rows of one forward pass.

        Args:
            per_row (`torch.FloatTensor` of shape `(batch_size,)`): unweighted key loss of each row, with its graph.
        """
        keys = self._pool.keys
        if not keys.requires_grad or not per_row.requires_grad:
            return
        (gradient,) = torch.autograd.grad(per_row.sum(), keys, retain_graph=True)
        sums = torch.cat([gradient.float().flatten(), gradient.new_full((1,), len(per_row), dtype=torch.float32)])
        self._sums = sums if self._sums is None else self._sums + sums

    @torch.no_grad()
    def add_to_gradient(self) -> None:
        """Adds the gradient to that of the keys. With several processes, all must call it, those without rows too,
        before the optimizer's step and after the gradients were clipped."""
        keys, sums = self._pool.keys, self._sums
        self._sums = None
        if is_distributed() and keys.requires_grad:
            if sums is None:  # other processes may have rows
                sums = torch.zeros(keys.numel() + 1, device=keys.device)
            torch.distributed.all_reduce(sums)
        # Reading the number of rows synchronizes with the device, so it is read only where it makes a difference.
        if sums is None or (keys.grad is None and not bool(sums[-1] > 0)):
            return
        mean = sums[:-1] / sums[-1].clamp(min=1)
        gradient = self._pool.config.key_loss_weight * mean.view_as(keys).to(keys)
        keys.grad = gradient if keys.grad is None else keys.grad + gradient
