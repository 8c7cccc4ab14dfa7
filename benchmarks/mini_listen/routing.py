"""Controls of the selection: prompts that are selected by a given rule instead of by similarity.

- "task": the row's task decides. It is the most that a selector could know, and needs labels that a user does not have.
- "random": a fixed hash of the clip decides, separately for each position of the prompt. It selects without any meaning.

The rule's choices travel with the batch: the collator adds them, and a hook takes them out again before the model runs.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from peft_listen import Selection, Selector, register_selector
from peft_listen.tuners.listen import find_listen_layer

from .settings import TASKS


Rule = Literal["task", "random"]
CHOICES = "routed_choices"


@register_selector("mini_listen_routed")
class RoutedSelector(Selector):
    """
    Selects one prompt of each group as it is told. The groups are consecutive parts of the pool.

    Attributes:
        choices (`torch.LongTensor` of shape `(batch_size, num_groups)`, *optional*): for each row of the next batch, the
            place of the prompt within each group.

    Args:
        num_groups (`int`): number of groups, which must divide the size of the pool.
    """

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self.choices: torch.Tensor | None = None

    def select(self, query: torch.Tensor, keys: torch.Tensor, k: int) -> Selection:
        if self.choices is None or len(self.choices) != len(query):
            found = "none" if self.choices is None else len(self.choices)
            raise ValueError(
                f"The selector needs the choices of {len(query)} rows and has those of {found}. Make the batch with "
                "`RoutedCollator`, and pass it to `Router.take`."
            )
        if k > self.num_groups:
            raise ValueError(f"k={k} prompts of {self.num_groups} groups: one of each can be selected.")
        size = len(keys) // self.num_groups
        first = size * torch.arange(self.num_groups, device=keys.device)
        indices = (first + self.choices.to(keys.device))[:, :k]
        return Selection(indices=indices, scores=torch.ones_like(indices, dtype=keys.dtype))


class Router:
    """
    The rule of a control, and its connection to a model.

    Args:
        rule (`str`): `"task"` or `"random"`.
        num_groups (`int`): number of groups, one per position of the prompt.
        size (`int`): prompts of each group; with the rule "task", one for each of `TASKS`.

    Raises:
        ValueError: for another rule, or a size that does not fit the tasks.
    """

    def __init__(self, rule: Rule, num_groups: int, size: int) -> None:
        if rule not in ("task", "random"):
            raise ValueError(f"There is no rule {rule!r}, expected 'task' or 'random'.")
        if rule == "task" and size != len(TASKS):
            raise ValueError(f"The rule 'task' needs a prompt for each of {len(TASKS)} tasks in a group, got {size}.")
        self.rule, self.num_groups, self.size = rule, num_groups, size
        self._selector: RoutedSelector | None = None

    def attach(self, model: torch.nn.Module) -> None:
        """Sets a hook on a model whose adapter uses [`RoutedSelector`]: each forward pass takes the choices of its batch."""
        selector = find_listen_layer(model).pool_of().selector
        assert isinstance(selector, RoutedSelector)
        self._selector = selector

        def before(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            return args, self.take(kwargs)

        model.register_forward_pre_hook(before, with_kwargs=True)

    def take(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch without the choices of its rows, if it has them, which the selector gets. Others keep the former ones."""
        assert self._selector is not None
        if CHOICES in batch:
            self._selector.choices = batch[CHOICES]
        return {name: value for name, value in batch.items() if name != CHOICES}

    def choices(self, examples: Sequence[Mapping[str, Any]]) -> torch.Tensor:
        """The choices for some rows, of shape `(batch_size, num_groups)`."""
        return torch.tensor([self._choice(example) for example in examples])

    def _choice(self, example: Mapping[str, Any]) -> list[int]:
        if self.rule == "task":
            return [TASKS.index(example["task"])] * self.num_groups
        # Split and name, because the folder differs between machines.
        draw = random.Random("/".join(Path(example["audio"]).parts[-2:]))
        return [draw.randrange(self.size) for _ in range(self.num_groups)]


class RoutedCollator:
    """
    A collator that adds the choices of a router to each batch.

    Args:
        collator: makes the batches.
        router ([`Router`])
    """

    def __init__(self, collator: Any, router: Router) -> None:
        self.collator, self.router = collator, router

    def __getattr__(self, name: str) -> Any:
        # Not during unpickling in a data loader worker, where there is no collator yet.
        if name == "collator":
            raise AttributeError(name)
        return getattr(self.collator, name)

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {**self.collator(examples), CHOICES: self.router.choices(examples)}
