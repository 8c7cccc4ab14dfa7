"""The experiments: the comparison of methods, the remedies for collapse, and the paper's own studies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .settings import TASKS, RunSettings


SEEDS = (0, 1, 2)

# The paper's form: no remedies, P = 400, k drawn from 1 to P, keys from the vocabulary, summed key loss.
PAPER = {"pool_size": 400, "prompt_length": 10, "key_loss_weight": 0.01, "paper_form": True}
# With k drawn up to 40, the forms differ in their selection only, not tenfold in their compute.
PLAIN = {**PAPER, "max_train_prompt_length": 40}
# The remedies against collapse that the study of remedies adds to the plain form one by one.
REMEDIES: dict[str, dict[str, Any]] = {
    "centered": {"center_queries": True},
    "standardized": {"center_queries": True, "standardize_queries": True},
    "keys from queries": {"center_queries": True, "init_keys_at_steps": [8]},
    "template ignored": {"ignore_template": True},
    "modalities apart": {"query_pooling": "modality_mean"},
    "balanced usage": {"usage_balance": 0.05},
    "reseeding": {"reseed_every": 20},
    "exploration": {"exploration": 0.1, "exploration_steps": 60},
    "shared prompts before": {"num_shared_prompts": 10},
    "shared prompts added": {"num_shared_prompts": 40, "shared_prompt_mode": "add"},
    "one of each group": {"selector": "grouped"},
}
WITHOUT_REMEDIES = {
    "pool_size": 400,
    "prompt_length": 10,
    "max_train_prompt_length": 40,
    "key_loss_weight": 0.1,
    "center_queries": False,
    "query_pooling": "mean",
}
# Options that make tasks select different prompts.
SEPARATED_QUERIES = {
    "key_loss_weight": 0.1,
    "center_queries": True,
    "ignore_template": True,
    "query_pooling": "modality_mean",
}
# The first form that selected by task. Its loss was higher than that of one soft prompt.
BY_SIMILARITY = {
    **SEPARATED_QUERIES,
    "pool_size": 400,
    "prompt_length": 10,
    "max_train_prompt_length": 40,
    "init_keys_at_steps": [8, 64],
    "num_shared_prompts": 10,
}
# 380 key-value pairs and 38 shared prompts have 459 648 parameters; LoRA of rank 8 has 460 800.
GROUPED = {
    **SEPARATED_QUERIES,
    "pool_size": 380,
    "selector": "grouped",
    "selector_kwargs": {"num_groups": 38},
    "prompt_length": 38,
    "stochastic_prompt_length": False,
    "init_keys_at_steps": [8],
    "num_shared_prompts": 38,
    "shared_prompt_mode": "add",
}
# A value gets gradients from few rows, a shared prompt from all rows. At the same rate, the values were mostly noise.
TEN_PER_SLOT = {**GROUPED, "value_rate": 0.2}
# Two prompts per position instead of ten: each is trained by more rows, and an unseen wording of an instruction less often
# selects a prompt that has not been trained on its task.
IMPROVED = {**TEN_PER_SLOT, "pool_size": 76}


@dataclass(frozen=True)
class Experiment:
    """
    One row of a table.

    Args:
        label (`str`): name in the table.
        settings ([`RunSettings`]): settings of its runs; the seed is replaced.
        seeds (`tuple[int, ...]`, defaults to `(0, 1, 2)`): one run per seed.
        is_reference (`bool`, defaults to `False`): whether the other experiments of its group are compared with it. A group
            with a reference compares methods and is plotted.
    """

    label: str
    settings: RunSettings
    seeds: tuple[int, ...] = field(default=SEEDS)
    is_reference: bool = False

    @property
    def is_runnable(self) -> bool:
        """Whether all of its options still exist."""
        return REMOVED_OPTIONS.isdisjoint(self.settings.options)

    def runs(self) -> list[RunSettings]:
        """The settings of its runs, one per seed."""
        return [replace(self.settings, seed=seed) for seed in self.seeds]


# Options that were removed because they did not improve the results. Runs that use them were measured with commit
# 3368f81, the last one that had these options; their stored results stay in the tables, but they cannot be run again.
REMOVED_OPTIONS = frozenset({"usage_balance", "reseed_every", "exploration", "exploration_steps", "query_dropout"})


# Prompt lengths at which a trained pool is evaluated in addition to its own.
SWEEP = (1, 2, 4, 8, 16, 32, 38, 64)


Group = Callable[[RunSettings], Iterator[Experiment]]
GROUPS: dict[str, Group] = {}


def register_group(function: Group) -> Group:
    """Decorator that registers a function `(base settings) -> experiments` as a group; its docstring is the table's title."""
    GROUPS[function.__name__] = function
    return function


def _listen(base: RunSettings, **options: Any) -> RunSettings:
    return replace(base, method="listen", options=options)


def _study(base: RunSettings) -> RunSettings:
    """Settings of a study, which compares variants with each other and needs a third of the steps."""
    return replace(base, steps=max(1, base.steps // 3))


def _improved(study: RunSettings) -> Experiment:
    """The baseline of the studies: one run that all of them share."""
    return Experiment("as improved", replace(_listen(study, **IMPROVED), prompt_lengths=SWEEP), seeds=(0,))


def _lora(base: RunSettings) -> Experiment:
    return Experiment("LoRA, r = 8 on q, v", replace(base, method="lora", options={"rank": 8}), is_reference=True)


def _soft_prompt(base: RunSettings) -> Experiment:
    settings = replace(base, method="soft_prompt", options={"prompt_length": 40})
    return Experiment("soft prompt of 40", settings)


def _tuned_form(base: RunSettings) -> Experiment:
    return Experiment("DPS, P = 76", _listen(base, **IMPROVED))


def _single(experiment: Experiment, label: str | None = None) -> Experiment:
    """The same experiment with one seed, and not as a reference."""
    return replace(experiment, label=label or experiment.label, seeds=(0,), is_reference=False)


@register_group
def methods(base: RunSettings) -> Iterator[Experiment]:
    """All methods at one learning rate. LoRA and the pool of 380 have the same number of parameters, the others fewer."""
    yield _lora(base)
    yield Experiment("DPS, P = 380", _listen(base, **TEN_PER_SLOT))
    yield _soft_prompt(base)
    yield _single(_tuned_form(base))
    yield Experiment("DPS, paper's form", _listen(base, **PLAIN), seeds=(0,))
    yield Experiment("projector alone", replace(base, method="projector", options={}), seeds=(0,))


def _at_rate(experiment: Experiment, rate: float) -> Experiment:
    """The same experiment at another learning rate; the rate of prompts is ten times as high."""
    settings = replace(experiment.settings, learning_rate=rate, value_learning_rate=10 * rate)
    return replace(experiment, settings=settings)


# The rates with the lowest validation loss in `learning_rates`; of two within 0.01 of each other, the lower rate.
TUNED_RATES = {"lora": 1e-3, "listen": 1e-3, "soft_prompt": 5e-4}


@register_group
def tuned_methods(base: RunSettings) -> Iterator[Experiment]:
    """The methods, each at its learning rate with the lowest validation loss."""
    half = Experiment("DPS, P = 76, and LoRA, r = 4", _listen(base, **IMPROVED, lora_rank=4), seeds=(0,))
    for experiment in (_lora(base), _tuned_form(base), _soft_prompt(base), half):
        yield _at_rate(experiment, TUNED_RATES[experiment.settings.method])


@register_group
def earlier_forms(base: RunSettings) -> Iterator[Experiment]:
    """Earlier forms: prompts in score order after ten shared prompts; values at the learning rate of shared prompts."""
    yield Experiment("DPS by similarity", _listen(base, **BY_SIMILARITY), seeds=(0,))
    half = {**BY_SIMILARITY, "pool_size": 200, "lora_rank": 4}
    yield Experiment("DPS by similarity, P = 200, and LoRA, r = 4", _listen(base, **half), seeds=(0,))
    yield Experiment("DPS, grouped, values as fast as shared prompts", _listen(base, **GROUPED), seeds=(0,))


@register_group
def wordings(base: RunSettings) -> Iterator[Experiment]:
    """Generalization to unseen wordings of instructions: words dropped from the query at random during training."""
    for label, options in (("none left out", {}), ("half left out", {"query_dropout": 0.5})):
        yield Experiment(f"DPS, P = 380, {label}", _listen(base, **TEN_PER_SLOT, **options), seeds=(0,))


@register_group
def learning_rates(base: RunSettings) -> Iterator[Experiment]:
    """Learning rates of each method, selected by validation loss; the rate of prompts is ten times as high."""
    # The best of three rates is never the lowest or the highest.
    low, high = (2e-4, 5e-4, 1e-3), (5e-4, 1e-3, 2e-3)
    for experiment, rates in ((_lora(base), high), (_soft_prompt(base), low), (_tuned_form(base), high)):
        for rate in rates:
            yield _single(_at_rate(experiment, rate), f"{experiment.label}, at {rate:g}")


def _selecting_by(selector: str, form: dict[str, Any]) -> dict[str, Any]:
    """A grouped form with another selector, without the options of groups."""
    return {**form, "selector": selector, "selector_kwargs": None}


@register_group
def selectors(base: RunSettings) -> Iterator[Experiment]:
    """The improved form with each selector and a pool of 380, after a third of the steps."""
    study = _study(base)
    yield Experiment("grouped", _listen(study, **TEN_PER_SLOT), seeds=(0,))
    for selector in ("similarity", "attention", "residual", "hybrid"):
        yield Experiment(selector, _listen(study, **_selecting_by(selector, TEN_PER_SLOT)), seeds=(0,))


@register_group
def attention(base: RunSettings) -> Iterator[Experiment]:
    """The selector with the lowest validation loss of the previous table, with few prompts and in a full run."""
    few, many = (_selecting_by("attention", form) for form in (IMPROVED, TEN_PER_SLOT))
    yield Experiment("attention, P = 76, a third of the steps", _listen(_study(base), **few), seeds=(0,))
    yield _at_rate(Experiment("attention, P = 380, at 0.001", _listen(base, **many), seeds=(0,)), 1e-3)


@register_group
def remedies(base: RunSettings) -> Iterator[Experiment]:
    """Each remedy added alone to the plain form, after a third of the steps; last, those of the improved form together."""
    study = _study(base)
    yield Experiment("none", _listen(study, **WITHOUT_REMEDIES), seeds=(0,))
    for label, options in REMEDIES.items():
        yield Experiment(label, _listen(study, **{**WITHOUT_REMEDIES, **options}), seeds=(0,))
    yield _improved(study)


@register_group
def pool_sizes(base: RunSettings) -> Iterator[Experiment]:
    """The paper's study of the pool size: 2, 5 and 10 prompts per position."""
    for pool_size in (76, 190, 380):
        yield Experiment(f"P = {pool_size}", _listen(base, **{**IMPROVED, "pool_size": pool_size}), seeds=(0,))


@register_group
def prompt_lengths(base: RunSettings) -> Iterator[Experiment]:
    """Stochastic and fixed prompt length, each evaluated at several k, after a third of the steps."""
    study = _study(base)
    drawn = {**IMPROVED, "stochastic_prompt_length": True, "max_train_prompt_length": 38}
    yield replace(_improved(study), label="k = 38 in training")
    yield Experiment("k drawn from 1 to 38", replace(_listen(study, **drawn), prompt_lengths=SWEEP), seeds=(0,))


@register_group
def key_loss(base: RunSettings) -> Iterator[Experiment]:
    """Key loss off, weak and strong, after a third of the steps."""
    study = _study(base)
    for weight in (0.0, 0.01):
        yield Experiment(f"key loss {weight:g}", _listen(study, **{**IMPROVED, "key_loss_weight": weight}), seeds=(0,))
    yield replace(_improved(study), label=f"key loss {IMPROVED['key_loss_weight']:g}")
    yield Experiment("key loss 1", _listen(study, **{**IMPROVED, "key_loss_weight": 1.0}), seeds=(0,))


@register_group
def tasks(base: RunSettings) -> Iterator[Experiment]:
    """Training on two, four, five and six tasks, after a third of the steps; all six are evaluated."""
    study = _study(base)
    subsets = {
        "asr and en2zh": TASKS[:2],
        "asr, en2zh, er and sv": TASKS[:4],
        "all but sqa": tuple(task for task in TASKS if task != "sqa"),
        "all six": TASKS,
    }
    for label, subset in subsets.items():
        few = replace(study, tasks=subset)
        ours = _listen(few, **IMPROVED) if subset != TASKS else _improved(study).settings
        yield Experiment(f"DPS on {label}", ours, seeds=(0,))
        yield _single(_lora(few), f"LoRA on {label}")
