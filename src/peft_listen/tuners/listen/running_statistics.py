"""Running statistics of the training: where the queries lie, and how often each prompt is chosen.

They move at optimizer steps only, by what all ranks and micro-batches of the step have seen together. Within a step
they stand still: otherwise a batch that is cut into micro-batches would have another gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed


# A prompt's share of the choices is remembered over about twenty optimizer steps.
USAGE_MOMENTUM = 0.95


@dataclass(frozen=True)
class StepStatistics:
    """
    What one optimizer step has seen.

    Attributes:
        mean (`torch.FloatTensor` of shape `(embedding_size,)`): mean of the queries.
        variance (`torch.FloatTensor` of shape `(embedding_size,)`): mean square distance from the running mean.
        usage (`torch.FloatTensor` of shape `(pool_size,)`): how often each prompt was chosen; 1 is the pool's average.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    usage: torch.Tensor


class StepSums:
    """Sums over the forward passes of one optimizer step."""

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None
        self._sizes: tuple[int, int, int] = (0, 0, 0)

    @torch.no_grad()
    def add(self, query: torch.Tensor, running_mean: torch.Tensor, indices: torch.Tensor, pool_size: int) -> None:
        """
        Args:
            query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): before it is centred.
            running_mean (`torch.FloatTensor` of shape `(embedding_size,)`): of the queries of earlier steps.
            indices (`torch.LongTensor` of shape `(batch_size, k)`): the chosen prompts.
            pool_size (`int`)
        """
        counts = torch.bincount(indices.flatten(), minlength=pool_size).to(query)
        squares = (query - running_mean).square().sum(dim=0)
        rows = query.new_tensor([float(len(query))])
        total = torch.cat([query.sum(dim=0), squares, counts, rows])
        self._total = total if self._total is None else self._total.to(total.device) + total
        self._sizes = (query.shape[1], query.shape[1], pool_size)

    @torch.no_grad()
    def take(self) -> StepStatistics | None:
        """The statistics of the step that has ended, of all ranks together, or `None` if there was no forward pass.
        The sums begin anew."""
        total, self._total = self._total, None
        if total is None:
            return None
        if _is_distributed():
            torch.distributed.all_reduce(total)
        queries, squares, counts = total[:-1].split(self._sizes)
        rows = total[-1]
        return StepStatistics(queries / rows, squares / rows, counts * len(counts) / counts.sum().clamp_min(1))


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in the same order on each."""
    if not _is_distributed():
        return rows
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rows.cpu())
    return torch.cat(gathered).to(rows.device)


def process_rank() -> int:
    """This process' rank, 0 without distributed training."""
    return torch.distributed.get_rank() if _is_distributed() else 0


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
