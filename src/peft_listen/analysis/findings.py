"""Good, fair or poor: what a summary's numbers mean, and what to try where they are poor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .summary import SelectionSummary


Rating = Literal["good", "fair", "poor", "unknown"]

# From what on a number is good and fair (ours). Overlap, silhouette and the share of live prompts are the aims that this
# library's benchmarks are held to; 0.95 is where `ListenCallback` warns of collapsed queries.
OVERLAP = (0.5, 0.8)
LIVE_SHARE = (0.8, 0.4)
SILHOUETTE = (0.3, 0.1)
NEIGHBOR_GAIN = (0.8, 0.5)
QUERY_COSINE = (0.5, 0.95)

NO_NUMBER = "none"


@dataclass(frozen=True)
class Finding:
    """
    One number and what to make of it.

    Attributes:
        title (`str`): what is measured.
        value (`str`): the number, as it is shown.
        rating (`"good"`, `"fair"`, `"poor"` or `"unknown"`)
        goal (`str`): from what on it is good.
        meaning (`str`): how it is to be read.
        advice (`str`, *optional*): what to try, where it is poor or fair.
        position (`float`, *optional*): where the number lies on a scale from 0 to 1.
        goal_position (`float`, *optional*): where the goal lies on that scale.
        high_is_good (`bool`): which side of the goal is the good one.
    """

    title: str
    value: str
    rating: Rating
    goal: str
    meaning: str
    advice: str | None = None
    position: float | None = None
    goal_position: float | None = None
    high_is_good: bool = True


@dataclass(frozen=True)
class Verdict:
    """
    All findings in one sentence.

    Attributes:
        rating (`"good"`, `"fair"`, `"poor"` or `"unknown"`)
        headline (`str`): the sentence.
        detail (`str`): what it rests on.
    """

    rating: Rating
    headline: str
    detail: str


def judge(summary: SelectionSummary) -> tuple[Verdict, list[Finding]]:
    """The verdict on a summary, and its findings, the most telling first."""
    overlap = _judge_overlap(summary)
    live = _judge_live_prompts(summary)
    findings = [
        overlap,
        live,
        _judge_effective_prompts(summary),
        _judge_silhouette(summary),
        _judge_neighbors(summary),
        _judge_cosine(summary),
    ]
    return _verdict(summary, overlap, live), findings


def _verdict(summary: SelectionSummary, overlap: Finding, live: Finding) -> Verdict:
    if summary.mean_overlap is None:
        return Verdict(
            "unknown",
            "There is one task only, so nothing can be said of how tasks share prompts.",
            f"Its {summary.num_rows} inputs chose {summary.live_prompts} of {summary.pool_size} prompts.",
        )
    detail = (
        f"Of the {summary.top} prompts that a task chooses most often, two tasks have {summary.mean_overlap:.0%} in "
        f"common on average; {summary.live_prompts} of {summary.pool_size} prompts are in use."
    )
    if overlap.rating == "poor":
        return Verdict("poor", "Collapse: the tasks choose the same prompts.", detail)
    if overlap.rating == "fair":
        return Verdict("fair", "The tasks share most of their prompts.", detail)
    if live.rating == "poor":
        return Verdict("fair", "The tasks choose different prompts, but most of the pool lies idle.", detail)
    return Verdict("good", "The tasks choose different prompts.", detail)


def _judge_overlap(summary: SelectionSummary) -> Finding:
    value = summary.mean_overlap
    chance = f"Choosing blindly from this pool would give {summary.chance_overlap:.2f}."
    return Finding(
        title="Overlap of tasks",
        value=_number(value),
        rating=_rate(value, OVERLAP, high_is_good=False),
        goal=f"at most {OVERLAP[0]}",
        meaning=f"Share of common prompts among each two tasks' {summary.top} most chosen ones. 1 is collapse. {chance}",
        advice="centre or standardise the queries, and start the keys from real ones (init_keys_at_steps)",
        position=value,
        goal_position=OVERLAP[0],
        high_is_good=False,
    )


def _judge_live_prompts(summary: SelectionSummary) -> Finding:
    share = summary.live_prompts / summary.reachable_prompts
    limit = ""
    if summary.reachable_prompts < summary.pool_size:
        limit = (
            f" So few inputs can reach no more than {summary.reachable_prompts} of the {summary.pool_size}: the share "
            "is of those."
        )
    return Finding(
        title="Prompts in use",
        value=f"{summary.live_prompts} of {summary.pool_size}",
        rating=_rate(share, LIVE_SHARE),
        goal=f"at least {LIVE_SHARE[0]:.0%}",
        meaning=f"Prompts that at least one input chose. The others do nothing.{limit}",
        advice="reseed unused prompts (reseed_every), balance their usage (usage_balance), or take a smaller pool",
        position=share,
        goal_position=LIVE_SHARE[0],
    )


def _judge_effective_prompts(summary: SelectionSummary) -> Finding:
    return Finding(
        title="Effective prompts",
        value=f"{summary.effective_prompts:.0f}",
        rating="unknown",
        goal="",
        meaning=(
            f"As many prompts, used equally, would have the entropy of all choices "
            f"({math.log2(summary.effective_prompts):.1f} bits). Every input chooses {summary.prompt_length}."
        ),
        position=summary.effective_prompts / summary.pool_size,
    )


def _judge_silhouette(summary: SelectionSummary) -> Finding:
    value = summary.silhouette
    return Finding(
        title="Silhouette of queries",
        value=_number(value),
        rating=_rate(value, SILHOUETTE),
        goal=f"at least {SILHOUETTE[0]}",
        meaning="How compact each task's queries are, and how far from other tasks', from -1 to 1. At 0 they lie over "
        "each other.",
        advice="leave the chat template out of the query (query_ignored_token_ids), or standardise the queries",
        position=None if value is None else (value + 1) / 2,
        goal_position=(SILHOUETTE[0] + 1) / 2,
    )


def _judge_neighbors(summary: SelectionSummary) -> Finding:
    value, baseline = summary.neighbor_accuracy, summary.majority_share
    gain = None if value is None or baseline == 1 else (value - baseline) / (1 - baseline)
    goal = baseline + NEIGHBOR_GAIN[0] * (1 - baseline)
    return Finding(
        title="Task told by neighbours",
        value=NO_NUMBER if value is None else f"{value:.0%}",
        rating=_rate(gain, NEIGHBOR_GAIN),
        goal=f"at least {goal:.0%}",
        meaning=f"How often the five nearest queries of other inputs name a query's task. Guessing the most frequent task "
        f"gets {baseline:.0%}.",
        advice="the queries hardly tell the tasks apart: look at the projector's training and the instructions",
        position=value,
        goal_position=goal,
    )


def _judge_cosine(summary: SelectionSummary) -> Finding:
    value = summary.query_cosine
    return Finding(
        title="Cosine of queries",
        value=_number(value),
        rating=_rate(value, QUERY_COSINE, high_is_good=False),
        goal=f"at most {QUERY_COSINE[0]}",
        meaning="Mean cosine between the queries of two inputs, as the keys see them. Near 1 all inputs look the same.",
        advice="set center_queries=True",
        position=max(0.0, value),
        goal_position=QUERY_COSINE[0],
        high_is_good=False,
    )


def _rate(value: float | None, limits: tuple[float, float], high_is_good: bool = True) -> Rating:
    if value is None:
        return "unknown"
    good, fair = limits
    sign = 1 if high_is_good else -1
    if sign * value >= sign * good:
        return "good"
    return "fair" if sign * value >= sign * fair else "poor"


def _number(value: float | None) -> str:
    # Rounding must not leave a sign on zero.
    return NO_NUMBER if value is None else f"{value:.2f}".replace("-0.00", "0.00")
