"""Running statistics of the training queries: their mean and their variance.

They are updated only at optimizer steps, from the queries of all micro-batches of the step. They are constant within a
step; otherwise gradient accumulation would change the gradient.

The queries of several processes are summed where these processes reduce their gradients anyway: at the end of a backward
pass in which DistributedDataParallel or FSDP2 does so. A process therefore never waits for one that takes no part, and
saving or an optimizer step involves no communication. In other loops, every process has the statistics of its own
queries.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel


if TYPE_CHECKING:  # some builds of torch do not have it
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class StepStatistics:
    """
    Statistics of the queries of one optimizer step.

    Attributes:
        mean (`torch.FloatTensor` of shape `(embedding_size,)`): mean of the queries.
        variance (`torch.FloatTensor` of shape `(embedding_size,)`): mean squared distance from the running mean.
        num_rows (`torch.FloatTensor`, a scalar): number of finite queries.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    num_rows: torch.Tensor


class StepSums:
    """
    Sums over the forward passes of one optimizer step. Queries that contain NaN or infinite values are skipped.

    If several processes have added their sums in a step, only these count. A pass whose gradients are not reduced would
    otherwise make the statistics of the processes differ.
    """

    def __init__(self) -> None:
        self._total: torch.Tensor | None = None  # of this process, since the last `reduce`
        self._reduced: torch.Tensor | None = None  # of all processes, until then
        self._num_skipped: torch.Tensor | None = None

    @property
    def num_skipped(self) -> int:
        """Number of queries that were skipped so far, in this process. Reading it synchronizes with the device."""
        return 0 if self._num_skipped is None else int(self._num_skipped)

    @property
    def is_empty(self) -> bool:
        """Whether there was no forward pass since the last [`take`]."""
        return self._total is None and self._reduced is None

    @torch.no_grad()
    def add(self, query: torch.Tensor, running_mean: torch.Tensor) -> None:
        """
        Adds the queries of one forward pass.

        Args:
            query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): before centering.
            running_mean (`torch.FloatTensor` of shape `(embedding_size,)`): of the queries of earlier steps.
        """
        # Values whose squares overflow would make the variance infinite.
        squares = (query - running_mean).square()
        is_finite = (query.isfinite() & squares.isfinite()).all(dim=-1, keepdim=True)  # [batch, 1]
        num_skipped = (~is_finite).sum()
        self._num_skipped = (
            num_skipped if self._num_skipped is None else self._num_skipped.to(query.device) + num_skipped
        )
        squares = squares.masked_fill(~is_finite, 0.0).sum(dim=0)
        sums = query.masked_fill(~is_finite, 0.0).sum(dim=0)
        # In float32, regardless of the model's dtype: float16 would overflow.
        total = torch.cat([sums, squares, is_finite.sum(dim=0)]).float()
        self._total = total if self._total is None else self._total.to(total.device) + total

    @torch.no_grad()
    def reduce(self, groups: Sequence[ProcessGroup], running_mean: torch.Tensor) -> None:
        """
        Adds the sums of other processes. All processes of the groups must call it.

        Args:
            groups (`Sequence[ProcessGroup]`): one for each dimension along which processes train together.
            running_mean (`torch.FloatTensor` of shape `(embedding_size,)`): of the queries of earlier steps.
        """
        total, self._total = self._total, None
        if total is None:
            total = running_mean.new_zeros(2 * len(running_mean) + 1, dtype=torch.float32)
        for group in groups:
            torch.distributed.all_reduce(total, group=group)
        self._reduced = total if self._reduced is None else self._reduced.to(total.device) + total

    @torch.no_grad()
    def take(self) -> StepStatistics | None:
        """The statistics of the step that has ended, or `None` if there was no forward pass. Resets the sums."""
        total = self._total if self._reduced is None else self._reduced
        self._total = self._reduced = None
        if total is None:
            return None
        size = total.shape[0] // 2
        # A step whose sums overflow changes nothing, like one without any finite query.
        num_rows = torch.where(total.isfinite().all(), total[-1], 0.0)
        total = total.nan_to_num(0.0, 0.0, 0.0)
        # A step without any finite query changes nothing: the callers weight by `num_rows > 0`.
        mean, variance = (total[:-1] / num_rows.clamp_min(1)).split(size)
        return StepStatistics(mean, variance, num_rows)


@torch.no_grad()
def update(running: torch.Tensor, new: torch.Tensor, rate: float, num_rows: torch.Tensor) -> None:
    """
    Moves a running statistic toward that of a step, in place, unless the step had no finite query.

    Args:
        running (`torch.FloatTensor`): the running statistic.
        new (`torch.FloatTensor` of the same shape): that of the step.
        rate (`float`): weight of the step, in (0, 1].
        num_rows (`torch.FloatTensor`, a scalar): number of finite queries of the step.
    """
    # Computed on the device: reading `num_rows` into Python would synchronize in every step.
    weight = (rate * (num_rows > 0)).to(running)
    running.lerp_(new.to(running), weight)


def gather_rows(rows: torch.Tensor) -> torch.Tensor:
    """The rows of all processes, in the same order on each, `(num_rows, ...)`."""
    if not is_distributed():
        return rows
    gathered: list[torch.Tensor | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rows.cpu())
    return torch.cat([part for part in gathered if part is not None]).to(rows.device)


def all_processes() -> tuple[ProcessGroup, ...]:
    """The group of all processes."""
    world = torch.distributed.group.WORLD
    assert world is not None  # `is_distributed`
    return (world,)


def groups_of_backward(parameter: torch.Tensor) -> tuple[ProcessGroup, ...]:
    """
    The processes that reduce their gradients in the backward pass which is running, if FSDP2 shards the parameters.

    Args:
        parameter (`torch.Tensor`): a parameter of the module, after the pass.
    """
    mesh = getattr(parameter, "device_mesh", None)  # of a DTensor
    return () if mesh is None else tuple(mesh.get_group(dim) for dim in range(mesh.ndim))


def groups_of_forward() -> tuple[ProcessGroup, ...]:
    """The processes that will reduce their gradients in the backward pass of the forward pass which is running, if
    DistributedDataParallel runs it. None for the accumulating passes of `no_sync`, nor within `join`, where some
    processes have ended: there, DistributedDataParallel copies the statistics of one process to the others."""
    module = DistributedDataParallel._get_active_ddp_module() if is_distributed() else None
    if module is None or not module.require_backward_grad_sync or module._join_config.enable:
        return ()
    return (module.process_group,)


def is_distributed() -> bool:
    """Whether this process belongs to a group of processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()
