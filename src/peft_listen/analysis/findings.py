"""Ratings of summary statistics (good, fair or poor), and advice for those that are not good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .summary import SelectionSummary


Rating = Literal["good", "fair", "poor", "unknown"]

# Thresholds for good and fair, set by this library. Those of overlap, silhouette and live prompts are the goals of its
# benchmarks; 0.95 is the threshold at which `ListenCallback` warns of collapsed queries.
OVERLAP = (0.5, 0.8)
LIVE_SHARE = (0.8, 0.4)
SILHOUETTE = (0.3, 0.1)
NEIGHBOR_GAIN = (0.8, 0.5)
QUERY_COSINE = (0.5, 0.95)

NO_NUMBER = "none"


@dataclass(frozen=True)
class Finding:
    """
    One statistic, its rating and its explanation.

    Attributes:
        title (`str`): name of the statistic.
        value (`str`): its formatted value.
        rating (`"good"`, `"fair"`, `"poor"` or `"unknown"`): the rating.
        goal (`str`): the threshold for good; empty if the statistic is not rated.
        meaning (`str`): how to read the value.
        advice (`str`, *optional*): what to try if the rating is poor or fair.
        position (`float`, *optional*): position of the value on a scale from 0 to 1.
        goal_position (`float`, *optional*): position of the goal on this scale.
        high_is_good (`bool`, defaults to `True`): whether values above the goal are good.
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
    Overall rating of a summary.

    Attributes:
        rating (`"good"`, `"fair"`, `"poor"` or `"unknown"`): the rating.
        headline (`str`): the rating in one sentence.
        detail (`str`): the numbers behind it.
    """

    rating: Rating
    headline: str
    detail: str


def rate(summary: SelectionSummary, config: Mapping[str, Any] | None = None) -> tuple[Verdict, list[Finding]]:
    """
    Rates a summary.

    Args:
        summary ([`SelectionSummary`]): the statistics.
        config (`Mapping`, *optional*): configuration of the adapter. Options that are already set in it are left out of
            the advice.

    Returns:
        `tuple[Verdict, list[Finding]]`: the overall rating, and the findings, most important first.
    """
    config = config or {}
    overlap = _rate_overlap(summary, config)
    live = _rate_live_prompts(summary, config)
    findings = [
        overlap,
        live,
        _effective_prompts(summary),
        _rate_silhouette(summary, config),
        _rate_neighbors(summary),
        _rate_cosine(summary, config),
    ]
    return _verdict(summary, overlap, live), findings


def _verdict(summary: SelectionSummary, overlap: Finding, live: Finding) -> Verdict:
    if summary.mean_overlap is None:
        return Verdict(
            "unknown",
            "There is only one task, so overlap between tasks is undefined.",
            f"Its {summary.num_rows} inputs select {summary.live_prompts} of {summary.pool_size} prompts.",
        )
    detail = (
        f"On average, two tasks have {summary.mean_overlap:.0%} of their {summary.top} most selected prompts in common; "
        f"{summary.live_prompts} of {summary.pool_size} prompts are in use."
    )
    if overlap.rating == "poor":
        return Verdict("poor", "Collapse: the tasks select the same prompts.", detail)
    if overlap.rating == "fair":
        return Verdict("fair", "The tasks share most of their prompts.", detail)
    if live.rating == "poor":
        return Verdict("fair", "The tasks select different prompts, but most of the pool is unused.", detail)
    return Verdict("good", "The tasks select different prompts.", detail)


def _rate_overlap(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding:
    value = summary.mean_overlap
    return Finding(
        title="Overlap of tasks",
        value=_number(value),
        rating=_rating(value, OVERLAP, high_is_good=False),
        goal=f"at most {OVERLAP[0]}",
        meaning=(
            f"Fraction of the {summary.top} most selected prompts that two tasks have in common, averaged over all pairs. "
            f"1 is full collapse; random selection from this pool would give {summary.chance_overlap:.2f}."
        ),
        advice=_advice(config, "center_queries", "init_keys_at_steps", "grouped"),
        position=value,
        goal_position=OVERLAP[0],
        high_is_good=False,
    )


def _rate_live_prompts(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding:
    share = summary.live_prompts / summary.reachable_prompts
    limit = ""
    if summary.reachable_prompts < summary.pool_size:
        limit = (
            f" This number of inputs can select at most {summary.reachable_prompts} of the {summary.pool_size} prompts; "
            "the rating is relative to those."
        )
    return Finding(
        title="Prompts in use",
        value=f"{summary.live_prompts} of {summary.pool_size}",
        rating=_rating(share, LIVE_SHARE),
        goal=f"at least {LIVE_SHARE[0]:.0%}",
        meaning=f"Prompts that at least one input selects. The others have no effect.{limit}",
        advice=_advice(config, "init_keys_at_steps", "grouped", "pool_size"),
        position=share,
        goal_position=LIVE_SHARE[0],
    )


def _effective_prompts(summary: SelectionSummary) -> Finding:
    return Finding(
        title="Effective prompts",
        value=f"{summary.effective_prompts:.0f}",
        rating="unknown",
        goal="",
        meaning=(
            "The number of equally used prompts that would have the same entropy as the selections "
            f"({math.log2(summary.effective_prompts):.1f} bits). Every input selects {summary.prompt_length}."
        ),
        position=summary.effective_prompts / summary.pool_size,
    )


def _rate_silhouette(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding:
    value = summary.silhouette
    return Finding(
        title="Silhouette of queries",
        value=_number(value),
        rating=_rating(value, SILHOUETTE),
        goal=f"at least {SILHOUETTE[0]}",
        meaning=(
            "How compact the queries of each task are compared with their distance to other tasks, from -1 to 1. At 0 "
            "the tasks overlap."
        ),
        advice=_advice(config, "query_pooling", "center_queries"),
        position=None if value is None else (value + 1) / 2,
        goal_position=(SILHOUETTE[0] + 1) / 2,
    )


def _rate_neighbors(summary: SelectionSummary) -> Finding:
    value, baseline = summary.neighbor_accuracy, summary.majority_share
    gain = None if value is None or baseline == 1 else (value - baseline) / (1 - baseline)
    goal = baseline + NEIGHBOR_GAIN[0] * (1 - baseline)
    return Finding(
        title="Nearest-neighbour task accuracy",
        value=NO_NUMBER if value is None else f"{value:.0%}",
        rating=_rating(gain, NEIGHBOR_GAIN),
        goal=f"at least {goal:.0%}",
        meaning=(
            "How often the five nearest queries of other inputs predict the task of a query. Always predicting the most "
            f"frequent task gives {baseline:.0%}."
        ),
        advice="check the training of the projector and the wording of the instructions",
        position=value,
        goal_position=goal,
    )


def _rate_cosine(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding:
    value = summary.query_cosine
    return Finding(
        title="Cosine of queries",
        value=_number(value),
        rating=_rating(value, QUERY_COSINE, high_is_good=False),
        goal=f"at most {QUERY_COSINE[0]}",
        meaning=(
            "Mean cosine similarity between the queries of two inputs, after any centering. Near 1, selection cannot "
            "distinguish the inputs."
        ),
        advice=_advice(config, "center_queries", "query_pooling"),
        position=max(0.0, value),
        goal_position=QUERY_COSINE[0],
        high_is_good=False,
    )


def _advice(config: Mapping[str, Any], *remedies: str) -> str | None:
    """Joins the remedies that are not already set in the configuration; `None` if all of them are."""
    texts = {
        "center_queries": "set center_queries=True",
        "init_keys_at_steps": "initialize the keys from real queries (ListenCallback(init_keys_at_steps=...))",
        "query_pooling": 'set query_pooling="modality_mean"',
        "grouped": 'use selector="grouped" with shared prompts (num_shared_prompts)',
        "pool_size": "use a smaller pool",
    }
    is_set = {
        "center_queries": bool(config.get("center_queries")),
        "query_pooling": config.get("query_pooling") == "modality_mean",
        "grouped": config.get("selector") == "grouped" and bool(config.get("num_shared_prompts")),
    }
    advice = [texts[remedy] for remedy in remedies if not is_set.get(remedy)]
    return ", or ".join(filter(None, [", ".join(advice[:-1]), *advice[-1:]])) or None


def _rating(value: float | None, limits: tuple[float, float], high_is_good: bool = True) -> Rating:
    if value is None:
        return "unknown"
    good, fair = limits
    sign = 1 if high_is_good else -1
    if sign * value >= sign * good:
        return "good"
    return "fair" if sign * value >= sign * fair else "poor"


def _number(value: float | None) -> str:
    # Rounding can give "-0.00".
    return NO_NUMBER if value is None else f"{value:.2f}".replace("-0.00", "0.00")
