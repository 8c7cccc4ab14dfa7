"""Controls of the selection: selectors that do not look at the query, but at a number that the benchmark gives each row.

With the task's number, the selection is the best that a selector could learn to make, if a prompt is to belong to a task;
with a fixed hash of the clip, it tells nothing about the task. A pool that is better with its own queries than with the hash
owes this to its selection.

The numbers reach the selectors in two ways: as `routes` of a batch, which [`take_routes`] makes the model accept, in
training and evaluation; and from [`routing`] around a call of `generate`, which accepts no further arguments.
[`register_controls`] makes the selectors available to `ListenConfig`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch import nn

from peft_listen import Selection, Selector, register_selector


# Routes of the call of a model that is running, and of the `routing` block around it.
_of_call: ContextVar[torch.Tensor | None] = ContextVar("routes of the call", default=None)
_of_block: ContextVar[torch.Tensor | None] = ContextVar("routes of the block", default=None)

# The multiplicative generator of Park, Miller and Stockmeyer (1993).
MODULUS, MULTIPLIER = 2**31 - 1, 48271


@contextmanager
def routing(routes: torch.Tensor | None) -> Iterator[None]:
    """
    Gives the selectors the routes of the rows in the calls of a model in a `with` block.

    Args:
        routes (`torch.LongTensor` of shape `(batch_size,)`, *optional*): a number for each row, at least 0.
    """
    token = _of_block.set(routes)
    try:
        yield
    finally:
        _of_block.reset(token)


def take_routes(model: nn.Module) -> None:
    """
    Makes a model accept `routes` as an argument, for the selectors of this file. In a [`routing`] block, those of the block
    are used.

    Args:
        model (`nn.Module`): the model under a `PeftModel`: `model.get_base_model()`.
    """

    def take(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        kwargs = dict(kwargs)
        _of_call.set(kwargs.pop("routes", None))
        return args, kwargs

    model.register_forward_pre_hook(take, with_kwargs=True)


class RouteCollator:
    """
    Adds `routes` to the batches of another collator.

    Args:
        collator (`Callable`): makes a batch from a list of rows.
        route (`Callable`): gives the number of a row.
    """

    def __init__(
        self,
        collator: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
        route: Callable[[Mapping[str, Any]], int],
    ) -> None:
        self._collator = collator
        self._route = route

    def check_generation(self, model: nn.Module) -> None:
        """As in the other collator; see [`AudioListenCollator.check_generation`]."""
        check = getattr(self._collator, "check_generation", None)
        if check is not None:
            check(model)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        routes = torch.tensor([self._route(row) for row in rows])
        return {**self._collator(rows), "routes": routes}


def task_route(tasks: Sequence[str]) -> Callable[[Mapping[str, Any]], int]:
    """A row's route by its task: the number of `row["task"]` in `tasks`."""
    numbers = {task: number for number, task in enumerate(tasks)}
    return lambda row: numbers[row["task"]]


def clip_route(row: Mapping[str, Any]) -> int:
    """A row's route by its clip: a hash of the file's name and folder in `row["audio"]`, which are the same on all machines."""
    clip = "/".join(Path(row["audio"]).parts[-2:])
    return int.from_bytes(hashlib.sha256(clip.encode()).digest()[:8], "big") % MODULUS


class _RoutedSelector(Selector):
    """
    A selector without keys: the pool consists of consecutive groups of equal size, as in the grouped selector, and the
    prompt at position j is one of group j.

    Args:
        num_groups (`int`): number of groups, at least the number of prompts; divides the size of the pool.
    """

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        size, remainder = divmod(keys.shape[0], self.num_groups)
        if remainder or k > self.num_groups:
            raise ValueError(
                f"A pool of {keys.shape[0]} prompts in {self.num_groups} groups has no {k} groups of equal size. Set "
                f"`num_groups` to at least {k}, and `pool_size` to a multiple of it."
            )
        group = torch.arange(k, device=keys.device)
        member = self.member(_routes(len(query)).to(keys.device).unsqueeze(-1), group, size)
        scores = torch.zeros(len(query), k, device=keys.device)
        return Selection(indices=(group * size + member).expand(len(query), -1), scores=scores)

    def member(self, routes: torch.Tensor, group: torch.Tensor, size: int) -> torch.Tensor:
        """Number of the selected prompt in each group, `(batch_size, k)`; routes `(batch_size, 1)`, groups `(k,)`."""
        raise NotImplementedError


class TaskKnownSelector(_RoutedSelector):
    """The prompt of the row's task in each group; `routes` are the tasks' numbers. With fewer prompts than tasks in a group,
    tasks share prompts."""

    def member(self, routes: torch.Tensor, group: torch.Tensor, size: int) -> torch.Tensor:
        return (routes % size).expand(-1, len(group))


class RandomRoutingSelector(_RoutedSelector):
    """A prompt of each group that depends on the row's route and on the group alone, each equally often; `routes` are hashes of
    the clips."""

    def member(self, routes: torch.Tensor, group: torch.Tensor, size: int) -> torch.Tensor:
        # One step of a multiplicative generator for each group, with a multiplier of its own.
        multipliers = [pow(MULTIPLIER, number + 1, MODULUS) for number in range(len(group))]
        mixed = routes % MODULUS * torch.tensor(multipliers, device=group.device) % MODULUS
        return mixed * size // MODULUS


def register_controls() -> None:
    """Registers the selectors as `"task_known"` and `"random_routing"`."""
    register_selector("task_known")(TaskKnownSelector)
    register_selector("random_routing")(RandomRoutingSelector)


def _routes(batch_size: int) -> torch.Tensor:
    # Those of a call stay after it, because `selection_for` selects after the model's forward pass was stopped.
    routes = _of_block.get()
    routes = _of_call.get() if routes is None else routes
    if routes is None:
        raise ValueError(
            "This selector needs the routes of the rows. Pass `routes` to the model, after `take_routes(model)`, or call it "
            "in a block of `routing(routes)`."
        )
    if batch_size % len(routes):
        raise ValueError(f"There are {len(routes)} routes for {batch_size} rows. Pass one for each row.")
    return routes.repeat_interleave(batch_size // len(routes), dim=0)  # for the beams of `generate`
