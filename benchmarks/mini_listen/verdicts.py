"""The verdicts, by rules that were set before the runs.

Each rule reads the stored runs and returns what follows from them; a rule whose runs are missing says which.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from .comparison import Comparison, Study
from .experiments import (
    CONNECTOR,
    DEEP_SOFT_PROMPT,
    DPS,
    EQUAL_SOFT_PROMPT,
    LORA,
    LORA_EQUAL_COMPUTE,
    RANDOM_ROUTING,
    TASK_KNOWN,
    single_task_label,
)
from .normalization import relative_change
from .significance import ENOUGH_SEEDS


Outcome = Literal["yes", "no", "not decided"]

# Share of the tasks on which the compared form must be at or above LoRA: 8 of 12.
SHARE_OF_TASKS = 2 / 3
# A control within one point, of 100, of the selection does without it.
LEAST_POINTS = 1.0
# Percent below which training on all tasks costs LoRA nothing, so that there is no interference to avoid.
LEAST_INTERFERENCE = 2.0
# Share of the seeds in which one method must be the less balanced by both measures.
SHARE_OF_SEEDS = 5 / 6


@dataclass(frozen=True)
class Verdict:
    """
    What follows from the stored runs.

    Attributes:
        question (`str`)
        outcome (`str`): `"yes"`, `"no"` or `"not decided"`.
        reason (`str`): the numbers behind it, or the runs that are missing.
    """

    question: str
    outcome: Outcome
    reason: str


Rule = Callable[[Study], Verdict]
RULES: list[Rule] = []


def register_rule(function: Rule) -> Rule:
    """Decorator that adds a rule."""
    RULES.append(function)
    return function


def verdicts(study: Study) -> list[Verdict]:
    """The verdicts of all rules, in the order in which they are defined."""
    return [rule(study) for rule in RULES]


@register_rule
def claim_holds(study: Study) -> Verdict:
    """Mean by both tests, tasks won, worst task, and all controls without selection worse."""
    question = "Is DPS better than LoRA, by its selection?"
    result = study.compare(DPS, LORA)
    if result is None:
        return _missing(study, question, DPS, LORA)
    if study.scale is None:
        return _missing(study, question, *_scale_labels(study))
    controls = {label: study.score_difference(DPS, label) for label in (EQUAL_SOFT_PROMPT, RANDOM_ROUTING)}
    without_runs = [label for label, difference in controls.items() if difference is None]
    worst = [_mean_balance(study, label, result.seeds)[0] for label in (DPS, LORA)]
    needed = math.ceil(SHARE_OF_TASKS * len(result.tasks))
    conditions = {
        f"mean z {_signed(result)}, better by both tests": result.is_better,
        f"at or above LoRA on {len(result.won)} of {len(result.tasks)} tasks, {needed} needed": len(result.won)
        >= needed,
        f"worst task {worst[0]:.2f}, LoRA {worst[1]:.2f}": worst[0] > worst[1],
        **{
            f"{difference:+.1f} points over {label}": difference > 0
            for label, difference in controls.items()
            if difference is not None
        },
    }
    met = [text for text, is_met in conditions.items() if is_met]
    failed = [text for text, is_met in conditions.items() if not is_met]
    reason = f"met: {'; '.join(met) or 'nothing'}. Not met: {'; '.join(failed) or 'nothing'}."
    if len(result.seeds) < ENOUGH_SEEDS:
        return Verdict(question, "not decided", f"{_few_seeds(result)} {reason}")
    if failed:
        return Verdict(question, "no", reason)
    if without_runs:
        return _missing(study, question, *without_runs)
    return Verdict(question, "yes", reason)


@register_rule
def lora_is_beaten(study: Study) -> Verdict:
    """Falsified if the interval lies below zero, or if LoRA with equal compute is at or above DPS."""
    question = "Can DPS still be better than LoRA at equal parameters?"
    result, equal_compute = study.compare(DPS, LORA), study.compare(DPS, LORA_EQUAL_COMPUTE)
    if result is None or equal_compute is None:
        return _missing(study, question, DPS, LORA, LORA_EQUAL_COMPUTE)
    reason = (
        f"against LoRA {_interval(study, result)}; against LoRA at equal compute {_interval(study, equal_compute)}."
    )
    if result.interval.high < 0:
        return Verdict(question, "no", f"the interval lies below 0: {reason}")
    if equal_compute.interval.mean <= 0:
        return Verdict(question, "no", f"LoRA at equal compute is at or above DPS: {reason}")
    if len(result.seeds) < ENOUGH_SEEDS:
        return Verdict(question, "not decided", f"{_few_seeds(result)} {reason}")
    return Verdict(question, "yes", reason)


@register_rule
def selection_helps(study: Study) -> Verdict:
    """Falsified if random routing or the equal soft prompt is within one point of DPS."""
    question = "Is it the selection that helps?"
    labels = dict.fromkeys((EQUAL_SOFT_PROMPT, RANDOM_ROUTING))
    points = {label: study.score_difference(DPS, label) for label in labels}
    if missing := [label for label, difference in points.items() if difference is None]:
        return _missing(study, question, DPS, *missing)
    parts = [
        f"{points[label]:+.1f} points and {study.loss_difference(DPS, label):+.3f} of validation loss against {label}"
        for label in labels
    ]
    is_helped = all(difference is not None and difference > LEAST_POINTS for difference in points.values())
    reason = f"{'; '.join(parts)}; more than {LEAST_POINTS:g} point needed against each."
    return Verdict(question, "yes" if is_helped else "no", reason)


@register_rule
def soft_prompt_is_beaten(study: Study) -> Verdict:
    """Both tests against one soft prompt with about as many parameters."""
    question = f"Is DPS better than a {EQUAL_SOFT_PROMPT} with about as many parameters?"
    result = study.compare(DPS, EQUAL_SOFT_PROMPT)
    if result is None:
        return _missing(study, question, DPS, EQUAL_SOFT_PROMPT)
    reason = f"{_interval(study, result)}, p = {result.p_value:.3f}, {len(result.seeds)} seeds."
    if len(result.seeds) < ENOUGH_SEEDS:
        return Verdict(question, "not decided", f"{_few_seeds(result)} {reason}")
    return Verdict(question, "yes" if result.is_better else "no", reason)


@register_rule
def balance_is_better(study: Study) -> Verdict:
    """Worst task and spread over the tasks, seed by seed."""
    question = "Is DPS better balanced over the tasks than LoRA?"
    ours, theirs = study.balances(DPS), study.balances(LORA)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return _missing(study, question, DPS, LORA, *_scale_labels(study))
    better = [s for s in seeds if ours[s].worst > theirs[s].worst and ours[s].spread < theirs[s].spread]
    worse = [s for s in seeds if ours[s].worst < theirs[s].worst and ours[s].spread > theirs[s].spread]
    needed = math.ceil(SHARE_OF_SEEDS * len(seeds))
    means = [_mean_balance(study, label, seeds) for label in (DPS, LORA)]
    reason = (
        f"worst task {means[0][0]:.2f} and spread {means[0][1]:.2f}, LoRA {means[1][0]:.2f} and {means[1][1]:.2f}; better "
        f"by both in {len(better)} of {len(seeds)} seeds, worse by both in {len(worse)}, {needed} needed."
    )
    if len(seeds) < ENOUGH_SEEDS:
        return Verdict(question, "not decided", f"{len(seeds)} of {ENOUGH_SEEDS} seeds are stored. {reason}")
    outcome: Outcome = "yes" if len(better) >= needed else "no" if len(worse) >= needed else "not decided"
    return Verdict(question, outcome, reason)


@register_rule
def a_selector_can_win(study: Study) -> Verdict:
    """With the task known, a selector has nothing left to learn."""
    question = "Could any selector be better than LoRA?"
    result = study.compare(TASK_KNOWN, LORA)
    if result is None:
        return _missing(study, question, TASK_KNOWN, LORA)
    reason = f"with the task known, {_interval(study, result)}, {len(result.seeds)} seeds."
    if result.interval.mean < 0:
        return Verdict(question, "no", f"{reason} Only depth or a larger language model can change that.")
    return Verdict(question, "yes", reason)


@register_rule
def prompts_can_win(study: Study) -> Verdict:
    """What prompts can express with this language model."""
    question = "Is a deep soft prompt as good as LoRA?"
    result = study.compare(DEEP_SOFT_PROMPT, LORA)
    if result is None:
        return _missing(study, question, DEEP_SOFT_PROMPT, LORA)
    reason = f"{_interval(study, result)}, {len(result.seeds)} seeds."
    if result.interval.mean < 0:
        return Verdict(
            question, "no", f"{reason} It is a limit of prompts in a model of this size, not of the selection."
        )
    return Verdict(question, "yes", reason)


@register_rule
def there_is_interference(study: Study) -> Verdict:
    """LoRA on each task alone, with the same rows, against LoRA on all tasks."""
    question = "Do the tasks interfere with each other, so that balance matters?"
    changes = interference(study)
    if changes is None:
        return _missing(study, question, LORA, *(single_task_label(task, 1) for task in study.tasks))
    score, loss = changes
    reason = (
        f"from training alone to training together, on the same rows of a task, LoRA's scores change by {score:+.1f} % and "
        f"its validation losses improve by {loss:+.1f} %; an interference of {LEAST_INTERFERENCE:g} % in the losses is needed."
    )
    if loss <= -LEAST_INTERFERENCE:
        return Verdict(question, "yes", reason)
    return Verdict(question, "no", f"{reason} The benchmark cannot show an advantage by less interference.")


def interference(study: Study) -> tuple[float, float] | None:
    """Delta_m of LoRA by scores and by validation losses, in percent; `None` as long as a run is missing."""
    together = study.runs(LORA)
    alone = {task: next(iter(study.runs(single_task_label(task, 1)).values()), None) for task in study.tasks}
    if not together or any(run is None for run in alone.values()):
        return None
    singles = {task: run for task, run in alone.items() if run is not None}
    scores = relative_change(
        {task: statistics.fmean(run["test"][task]["score"] for run in together.values()) for task in singles},
        {task: run["test"][task]["score"] for task, run in singles.items()},
    )
    losses = relative_change(
        {task: statistics.fmean(run["validation_loss"][task] for run in together.values()) for task in singles},
        {task: run["validation_loss"][task] for task, run in singles.items()},
        lower_is_better=True,
    )
    return None if scores is None or losses is None else (scores, losses)


def _scale_labels(study: Study) -> Iterator[str]:
    """The runs that normalized scores need."""
    yield CONNECTOR
    for factor in (1, 4):
        yield from (single_task_label(task, factor) for task in study.tasks)


def _missing(study: Study, question: str, *labels: str) -> Verdict:
    names = [label for label in dict.fromkeys(labels) if study.missing(label)]
    listed = "; ".join(names[:4]) + (f" and {len(names) - 4} others" if len(names) > 4 else "")
    if not names:
        return Verdict(question, "not decided", "no task has room between the projector alone and a run on it alone.")
    return Verdict(question, "not decided", f"runs are missing: {listed}.")


def _few_seeds(result: Comparison) -> str:
    return f"{len(result.seeds)} of {ENOUGH_SEEDS} seeds are stored."


def _mean_balance(study: Study, label: str, seeds: list[int]) -> tuple[float, float]:
    """Worst task and spread, the means over some seeds."""
    balances = study.balances(label)
    return (
        statistics.fmean(balances[seed].worst for seed in seeds),
        statistics.fmean(balances[seed].spread for seed in seeds),
    )


def _signed(result: Comparison) -> str:
    return f"{result.interval.mean:+.3f} [{result.interval.low:+.3f}, {result.interval.high:+.3f}]"


def _interval(study: Study, result: Comparison) -> str:
    return f"{'mean score' if study.scale is None else 'mean z'} {_signed(result)}"
