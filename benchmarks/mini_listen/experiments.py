"""The experiments: the comparison of methods with its controls, the choice of the compared form, and the paper's questions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from .methods import missing_options
from .settings import RunSettings


SEEDS = (0, 1, 2, 3, 4, 5)
FEW_SEEDS = (0, 1, 2)
# Learning rates are chosen with a seed that is not used for the comparison.
RATE_SEED = 7

# SmolLM2-135M has 30 layers.
THREE_LAYERS = [1, 11, 21]
DEEP_LAYERS = [1, 6, 11, 16, 21]
NINETEEN_LAYERS = [1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17, 19, 20, 22, 23, 25, 26, 28]
ALL_LAYERS = list(range(1, 30))

# The paper's form: no remedies, keys from the vocabulary, summed key loss. With k drawn up to 40 instead of 400, the forms
# differ in their selection and not tenfold in their compute.
PAPER = {
    "pool_size": 400,
    "prompt_length": 10,
    "max_train_prompt_length": 40,
    "key_loss_weight": 0.01,
    "paper_form": True,
}
LENGTH = 20  # prompts of a row
# One prompt of two at each of 20 positions, and shared prompts that are added to them.
GROUPED = {
    "pool_size": 2 * LENGTH,
    "selector": "grouped",
    "selector_kwargs": {"num_groups": LENGTH},
    "prompt_length": LENGTH,
    "num_shared_prompts": LENGTH,
    "shared_prompt_mode": "add",
    "key_loss_weight": 0.1,
    "center_queries": True,
    "query_pooling": "modality_mean",
    "ignore_template": True,
    "init_keys_at_steps": [8],
    # A value gets gradients from few rows, a shared prompt from all rows. At the same rate, the values were mostly noise.
    "value_rate": 0.2,
}
DEEP = {"value_layers": DEEP_LAYERS}
# Ten prompts instead of 20, with vectors in 19 layers: 357 120 parameters.
TEN = {
    "pool_size": 20,
    "selector_kwargs": {"num_groups": 10},
    "prompt_length": 10,
    "num_shared_prompts": 10,
    "value_layers": NINETEEN_LAYERS,
}
# The query's text half is the state of the last prompt token after 26 of 30 layers.
UNDERSTOOD = {"query_layer": 26, "query_text": "last"}

# The form of dynamic prompt selection that the table of methods compares with LoRA, and that the controls are derived from.
# Chosen by the table of stage 0.
CANDIDATE: dict[str, Any] = {**GROUPED, **TEN, **UNDERSTOOD, "query_audio_weight": 0.0}

# Cost of a step of the candidate, relative to one of LoRA: LoRA with so many more steps has had equal compute. The
# results name the measured ratio.
EQUAL_COMPUTE = 1.4

# The rates with the lowest validation loss in the group `learning_rates`, by form and method. The results say if a stored
# run has a lower one.
TUNED_RATES: dict[str, dict[str, float]] = {
    "small": {"lora": 1e-3, "listen": 2e-4, "soft_prompt": 2e-4},
    "full": {"lora": 1e-3, "listen": 1e-3, "soft_prompt": 5e-4},
    "smoke": {"lora": 1e-3, "listen": 1e-3, "soft_prompt": 5e-4},
}
TRIED_RATES = {
    "lora": (2e-4, 5e-4, 1e-3, 2e-3),
    "listen": (1e-4, 2e-4, 5e-4, 1e-3),
    "soft_prompt": (1e-4, 2e-4, 5e-4, 1e-3),
}

# Prompt lengths at which a trained pool is evaluated in addition to its own.
SWEEP = (1, 2, 4, 6, 8, 10)


@dataclass(frozen=True)
class Experiment:
    """
    One row of a table.

    Args:
        label (`str`): name in the table. Experiments of one label have the same settings.
        settings ([`RunSettings`]): settings of its runs; the seed is replaced.
        seeds (`tuple[int, ...]`, defaults to `(0,)`): one run per seed.
    """

    label: str
    settings: RunSettings
    seeds: tuple[int, ...] = (0,)

    @property
    def missing_options(self) -> list[str]:
        """Options of its settings that this version does not have, which therefore cannot be run with it."""
        return missing_options(self.settings.method, self.settings.options)

    def runs(self) -> list[RunSettings]:
        """The settings of its runs, one per seed."""
        return [replace(self.settings, seed=seed) for seed in self.seeds]


Group = Callable[[RunSettings], Iterator[Experiment]]
GROUPS: dict[str, Group] = {}


def register_group(function: Group) -> Group:
    """Decorator that registers a function `(base settings) -> experiments` as a group; its docstring is the table's title."""
    GROUPS[function.__name__] = function
    return function


def title_of(group: str) -> str:
    """Title of a group's table."""
    return (GROUPS[group].__doc__ or group).strip().splitlines()[0]


# Labels that the verdicts refer to.
CONNECTOR = "projector alone"
LORA = "LoRA, r = 8"
LORA_EQUAL_COMPUTE = "LoRA, r = 8, equal compute"
DPS = "DPS"
SOFT_PROMPT = "soft prompt"
DEEP_SOFT_PROMPT = "deep soft prompt"
TASK_KNOWN = "DPS, task known"
RANDOM_ROUTING = "DPS, random routing"
PAPER_FORM = "DPS, paper's form"


def _at_rate(settings: RunSettings, rate: float) -> RunSettings:
    """The same settings at another learning rate; the rate of prompts is ten times as high."""
    return replace(settings, learning_rate=rate, value_learning_rate=10 * rate)


def _tuned(base: RunSettings, method: str, rate_of: str | None = None, **options: Any) -> RunSettings:
    """A method at its learning rate, or at that of a related one."""
    settings = replace(base, method=method, options=options)
    return _at_rate(settings, TUNED_RATES[base.form][rate_of or method])


def _lora(base: RunSettings, **others: Any) -> RunSettings:
    return replace(_tuned(base, "lora", rank=8), **others)


def _routed(base: RunSettings, rule: str, prompts_per_position: int) -> RunSettings:
    """The candidate's values and shared prompts, with another selection."""
    kept = {name: CANDIDATE[name] for name in ("prompt_length", "value_rate", "value_layers") if name in CANDIDATE}
    return _tuned(base, "routed", "listen", rule=rule, prompts_per_position=prompts_per_position, **kept)


# One prompt for all inputs with about as many parameters as the candidate, 345 600, and more prompts in more layers.
EQUAL_SOFT_PROMPT = DEEP_SOFT_PROMPT
DEEP_SOFT_PROMPT_OPTIONS = {"prompt_length": LENGTH, "value_layers": ALL_LAYERS}


@register_group
def methods(base: RunSettings) -> Iterator[Experiment]:
    """All methods, each at its own learning rate."""
    yield Experiment(CONNECTOR, _tuned(base, "projector", "lora"), FEW_SEEDS)
    yield Experiment(LORA, _lora(base), SEEDS)
    yield Experiment(DPS, _tuned(base, "listen", **CANDIDATE), SEEDS)
    yield Experiment(LORA_EQUAL_COMPUTE, _lora(base, steps=round(EQUAL_COMPUTE * base.steps)), FEW_SEEDS)
    yield Experiment(DEEP_SOFT_PROMPT, _tuned(base, "soft_prompt", **DEEP_SOFT_PROMPT_OPTIONS), SEEDS)
    yield Experiment(SOFT_PROMPT, _tuned(base, "soft_prompt", prompt_length=LENGTH), FEW_SEEDS)
    yield Experiment(TASK_KNOWN, _routed(base, "task", len(base.tasks)), FEW_SEEDS)
    groups = CANDIDATE["selector_kwargs"]["num_groups"]
    yield Experiment(RANDOM_ROUTING, _routed(base, "random", CANDIDATE["pool_size"] // groups), FEW_SEEDS)
    yield Experiment(PAPER_FORM, _tuned(base, "listen", **PAPER))


@register_group
def learning_rates(base: RunSettings) -> Iterator[Experiment]:
    """Learning rates of each method, chosen by validation loss; the rate of prompts is ten times as high."""
    options = {"lora": {"rank": 8}, "listen": CANDIDATE, "soft_prompt": DEEP_SOFT_PROMPT_OPTIONS}
    labels = {"lora": LORA, "listen": DPS, "soft_prompt": EQUAL_SOFT_PROMPT}
    for method, rates in TRIED_RATES.items():
        # Without the test split, which chooses nothing.
        settings = replace(base, method=method, options=options[method], test_per_task=0)
        for rate in rates:
            yield Experiment(f"{labels[method]}, at {rate:g}", _at_rate(settings, rate), (RATE_SEED,))


@register_group
def single_tasks(base: RunSettings) -> Iterator[Experiment]:
    """LoRA on one task: with the rows of this task that a run on all tasks sees, and with four times as many."""
    rows = base.steps / len(base.tasks)
    for factor in (1, 4):
        for task in base.tasks:
            steps = max(1, round(factor * rows))
            only = {"tasks": (task,), "evaluated_tasks": (task,)}
            yield Experiment(single_task_label(task, factor), _lora(base, steps=steps, **only))


def single_task_label(task: str, factor: int) -> str:
    """Label of LoRA on one task with once or four times its rows."""
    return f"LoRA on {task}" if factor == 1 else f"LoRA on {task}, {factor} x rows"


@register_group
def stage0(base: RunSettings) -> Iterator[Experiment]:
    """Which form to compare, by validation loss: short runs of 8 clips with one seed, without the test split."""
    short = replace(base, steps=min(80, base.steps), batch_size=8, test_per_task=0)

    def dps(label: str, **options: Any) -> Experiment:
        return Experiment(f"short: DPS, {label}", _tuned(short, "listen", **{**GROUPED, **options}))

    def soft(label: str, **options: Any) -> Experiment:
        return Experiment(f"short: {label}", _tuned(short, "soft_prompt", **{"prompt_length": LENGTH, **options}))

    def task_known(label: str, **options: Any) -> Experiment:
        known = {"rule": "task", "prompts_per_position": len(base.tasks), "value_rate": GROUPED["value_rate"]}
        settings = _tuned(short, "routed", "listen", prompt_length=LENGTH, **known, **options)
        return Experiment(f"short: {label}, P = {len(base.tasks) * LENGTH}", settings)

    every = {"value_layers": NINETEEN_LAYERS}
    told = {**UNDERSTOOD, "query_audio_weight": 0.0}
    heard = {**UNDERSTOOD, "query_audio_weight": 0.5}
    seven = {"pool_size": 7 * LENGTH, "value_layers": THREE_LAYERS, **told}
    scaled = {"query_layer": 28, "standardize_queries": True, "init_keys_at_steps": [], "keys_from_rows": 320}
    mixed = {"mixing_temperature": 0.1, "key_loss_weight": 0.0}
    yield Experiment(f"short: {LORA}", _lora(short))
    yield soft(f"{DEEP_SOFT_PROMPT}, 29 layers", value_layers=ALL_LAYERS)
    yield dps("k = 10, P = 20, 19 layers, query of layer 26", **TEN, **told)
    yield dps("P = 40, 19 layers, query of layer 26", **every, **told)
    yield dps("P = 40, 19 layers", **every)
    yield task_known(f"{TASK_KNOWN}, 5 layers", **DEEP)
    yield soft(f"{DEEP_SOFT_PROMPT}, k = 10, 19 layers", prompt_length=10, **every)
    yield dps("k = 10, P = 20, 19 layers", **TEN)
    yield dps("k = 10, P = 20, 19 layers, query of layer 26 and audio", **TEN, **heard)
    yield dps("k = 10, P = 20, 19 layers, mixed, query of layer 26", **TEN, **told, **mixed)
    yield dps(
        "k = 10, P = 30, 18 layers, query of layer 26",
        **{**TEN, "pool_size": 30, "value_layers": NINETEEN_LAYERS[:18]},
        **told,
    )
    yield dps("P = 140, 3 layers, query of layer 26", **seven)
    yield soft(SOFT_PROMPT)
    yield dps("P = 40")
    yield dps("P = 40, query of layer 26", **told)
    yield dps("P = 40, start from a text", start_text=True)
    yield task_known(TASK_KNOWN)
    yield dps("P = 140, 3 layers, standardized query of layer 28, keys from 320 rows", **{**seven, **scaled})


@register_group
def prompt_lengths(base: RunSettings) -> Iterator[Experiment]:
    """The paper's study of the prompt length: drawn in training or fixed, each evaluated at several k."""
    drawn = {**CANDIDATE, "stochastic_prompt_length": True, "max_train_prompt_length": CANDIDATE["prompt_length"]}
    yield Experiment(f"k = {CANDIDATE['prompt_length']} in training", _sweep(_tuned(base, "listen", **CANDIDATE)))
    yield Experiment(f"k drawn from 1 to {CANDIDATE['prompt_length']}", _sweep(_tuned(base, "listen", **drawn)))


def _sweep(settings: RunSettings) -> RunSettings:
    return replace(settings, prompt_lengths=SWEEP)


@register_group
def pool_sizes(base: RunSettings) -> Iterator[Experiment]:
    """The paper's study of the pool size, with every second task and with all tasks: 2, 5 and 10 prompts per position."""
    groups = CANDIDATE["selector_kwargs"]["num_groups"]
    for tasks in (base.tasks[::2], base.tasks):
        for size in (2, 5, 10):
            settings = _tuned(base, "listen", **{**CANDIDATE, "pool_size": size * groups})
            yield Experiment(f"P = {size * groups}, {len(tasks)} tasks", replace(settings, tasks=tasks))


@register_group
def held_out_tasks(base: RunSettings) -> Iterator[Experiment]:
    """One task is left out of the training, and evaluated with the others."""
    for task in ("first_word", "er", "acap"):
        rest = tuple(name for name in base.tasks if name != task)
        yield Experiment(f"LoRA without {task}", _lora(base, tasks=rest))
        yield Experiment(f"DPS without {task}", replace(_tuned(base, "listen", **CANDIDATE), tasks=rest))
