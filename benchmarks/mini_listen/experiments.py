"""Which runs there are: the comparison of methods, the remedies for collapse, and the paper's own studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .settings import TASKS, RunSettings


SEEDS = (0, 1, 2)

# The paper's form: no remedy, P = 400, k drawn from the whole pool, keys from the vocabulary, the key loss summed.
PAPER = {"pool_size": 400, "prompt_length": 10, "key_loss_weight": 0.01, "paper_form": True}
# With k drawn up to 40, what is compared is the choice, and not ten times the compute.
PLAIN = {**PAPER, "max_train_prompt_length": 40}
# Every remedy that is on by itself in `IMPROVED`, and alone in the study of remedies.
REMEDIES: dict[str, dict[str, Any]] = {
    "centred": {"center_queries": True},
    "standardised": {"center_queries": True, "standardize_queries": True},
    "keys from queries": {"center_queries": True, "init_keys_at_steps": [8, 64]},
    "template ignored": {"ignore_template": True},
    "modalities apart": {"query_pooling": "modality_mean"},
    "balanced usage": {"usage_balance": 0.05},
    "reseeding": {"reseed_every": 20},
    "exploration": {"exploration": 0.1, "exploration_steps": 200},
    "shared prompts": {"num_shared_prompts": 10},
}
UNREMEDIED = {
    "pool_size": 400,
    "prompt_length": 10,
    "max_train_prompt_length": 40,
    "key_loss_weight": 0.1,
    "center_queries": False,
    "query_pooling": "mean",
}
IMPROVED = {
    "pool_size": 400,
    "prompt_length": 10,
    "max_train_prompt_length": 40,
    "key_loss_weight": 0.1,
    "center_queries": True,
    "init_keys_at_steps": [8, 64],
    "ignore_template": True,
    "query_pooling": "modality_mean",
    "num_shared_prompts": 10,
}


@dataclass(frozen=True)
class Experiment:
    """
    One line of a table.

    Args:
        label (`str`): as the table names it.
        settings ([`RunSettings`]): of its runs, but for the seed.
        seeds (`tuple[int, ...]`): one run for each.
    """

    label: str
    settings: RunSettings
    seeds: tuple[int, ...] = field(default=SEEDS)

    def runs(self) -> list[RunSettings]:
        return [replace(self.settings, seed=seed) for seed in self.seeds]


Group = Callable[[RunSettings], Iterator[Experiment]]
GROUPS: dict[str, Group] = {}


def register_group(function: Group) -> Group:
    """Decorator that makes a function `(base settings) -> experiments` a group of experiments of its name."""
    GROUPS[function.__name__] = function
    return function


def _listen(base: RunSettings, **options: Any) -> RunSettings:
    return replace(base, method="listen", options=options)


@register_group
def methods(base: RunSettings) -> Iterator[Experiment]:
    """The methods at equal adapter parameters (the soft prompt has fewer: as many would be 800 tokens)."""
    yield Experiment("LoRA, r = 8 on q, v", replace(base, method="lora", options={"rank": 8}))
    yield Experiment("DPS, improved", _listen(base, **IMPROVED))
    yield Experiment("soft prompt of 40", replace(base, method="soft_prompt", options={"prompt_length": 40}))
    yield Experiment("DPS, paper's form", _listen(base, **PLAIN))
    yield Experiment("connector alone", replace(base, method="connector", options={}))
    half = {**IMPROVED, "pool_size": 200, "lora_rank": 4}
    yield Experiment("DPS, P = 200, and LoRA, r = 4", _listen(base, **half))


@register_group
def selectors(base: RunSettings) -> Iterator[Experiment]:
    """The improved form with each selector."""
    for selector in ("attention", "residual", "hybrid"):
        yield Experiment(f"DPS, improved, {selector}", _listen(base, **IMPROVED, selector=selector))


@register_group
def remedies(base: RunSettings) -> Iterator[Experiment]:
    """Each remedy alone, on top of the plain form."""
    yield Experiment("none", _listen(base, **UNREMEDIED), seeds=(0,))
    for label, options in REMEDIES.items():
        yield Experiment(label, _listen(base, **{**UNREMEDIED, **options}), seeds=(0,))


@register_group
def pool_sizes(base: RunSettings) -> Iterator[Experiment]:
    """The paper's study of the pool's size."""
    for pool_size in (50, 100, 200):
        length = min(40, pool_size)
        options = {**IMPROVED, "pool_size": pool_size, "max_train_prompt_length": length}
        yield Experiment(f"P = {pool_size}", _listen(base, **options))


@register_group
def prompt_lengths(base: RunSettings) -> Iterator[Experiment]:
    """Stochastic against fixed prompt length, each evaluated at k from 1 to 128."""
    sweep = (1, 2, 4, 8, 16, 32, 64, 128)
    stochastic = replace(_listen(base, **IMPROVED), prompt_lengths=sweep)
    yield Experiment("k drawn from 1 to 40", stochastic, seeds=(0,))
    fixed = replace(_listen(base, **IMPROVED, stochastic_prompt_length=False), prompt_lengths=sweep)
    yield Experiment("k = 10 in training", fixed, seeds=(0,))


@register_group
def key_loss(base: RunSettings) -> Iterator[Experiment]:
    """Key loss off, mild and strong."""
    for weight in (0.0, 0.01, 1.0):
        options = {**IMPROVED, "key_loss_weight": weight}
        yield Experiment(f"key loss {weight:g}", _listen(base, **options), seeds=(0,))


@register_group
def tasks(base: RunSettings) -> Iterator[Experiment]:
    """Two, four and five tasks; the fifth run leaves one out that is still evaluated."""
    for chosen in (TASKS[:2], TASKS[:4]):
        few = replace(base, tasks=chosen)
        yield Experiment(f"DPS on {', '.join(chosen)}", _listen(few, **IMPROVED), seeds=(0,))
        lora = replace(few, method="lora", options={"rank": 8})
        yield Experiment(f"LoRA on {', '.join(chosen)}", lora, seeds=(0,))
    held_out = replace(base, tasks=tuple(task for task in TASKS if task != "sqa"))
    yield Experiment("DPS, sqa held out", _listen(held_out, **IMPROVED), seeds=(0,))
    yield Experiment("LoRA, sqa held out", replace(held_out, method="lora", options={"rank": 8}), seeds=(0,))
