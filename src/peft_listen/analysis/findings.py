"""Ratings of summary statistics (good, fair or poor), with advice for those that are not good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from .advice import advise
from .answers import TaskAnswers
from .summary import SelectionSummary


Rating = Literal["good", "fair", "poor", "unknown"]

_FROM_WORST = ("poor", "fair", "unknown", "good")

# Thresholds for good and fair, set by this library. Those of overlap, silhouette and live prompts are the goals of its
# benchmarks; 0.95 is the threshold at which `ListenCallback` warns of collapsed queries.
OVERLAP = (0.5, 0.8)
LIVE_SHARE = (0.8, 0.4)
SILHOUETTE = (0.3, 0.1)
NEIGHBOR_GAIN = (0.8, 0.5)
QUERY_COSINE = (0.5, 0.95)
# Of answers above the chance level: fraction of the way from the chance level to no errors.
ANSWER_GAIN = (0.5, 0.0)

# Two tasks with a larger overlap share their prompts, or have the same prompts.
SHARED_OVERLAP, SAME_OVERLAP = OVERLAP

# Level of significance at which answers are above the chance level.
CHANCE_P_VALUE = 0.05

# Answers of a task are free texts if more than this fraction of the references differ. Free texts that are not equal to
# their reference may still be good, so equality alone does not show that they are at the chance level.
FREE_TEXT_SHARE = 0.5

_NAMES_SHOWN = 3


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
        worst_position (`float`, *optional*): position of the worst of the values whose mean is `value`.
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
    worst_position: float | None = None
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
        `tuple[Verdict, list[Finding]]`: the overall rating, and the findings, most important first. Statistics that are
        undefined, such as the overlap of a single task, are left out.
    """
    config = config or {}
    findings = [
        _rate_answers(summary, config),
        _rate_overlap(summary, config),
        _rate_live_prompts(summary, config),
        _effective_prompts(summary),
        _rate_silhouette(summary, config),
        _rate_neighbors(summary, config),
        _rate_cosine(summary, config),
    ]
    return _verdict(summary), [finding for finding in findings if finding is not None]


def shared_pairs(summary: SelectionSummary) -> dict[tuple[str, str], float]:
    """Returns the overlap of each pair of tasks that share their prompts (above `SHARED_OVERLAP`), largest first."""
    pairs = {pair: value for pair, value in summary.overlap.items() if value > SHARED_OVERLAP}
    return dict(sorted(pairs.items(), key=lambda item: (-item[1], item[0])))


def overlap_mark(value: float) -> str:
    """Returns the mark of a pair of tasks in the table of overlaps: `"shared"`, `"same"` or an empty string."""
    if value > SAME_OVERLAP:
        return "same"
    return "shared" if value > SHARED_OVERLAP else ""


def rate_task_answers(answers: TaskAnswers) -> Rating:
    """
    Rates the answers of one task.

    Args:
        answers ([`TaskAnswers`]): number of correct answers.

    Returns:
        `"poor"` if their accuracy is not significantly above the chance level, otherwise `"good"` or `"fair"`.
        `"unknown"` if neither can be said: there are so few rows that all answers but one could be correct without being
        significantly above the chance level, all references are the same, or the answers are free texts that rarely equal
        their references.
    """
    if answers.p_value < CHANCE_P_VALUE:
        gain = (answers.accuracy - answers.chance_level) / (1 - answers.chance_level)
        return _rating(gain, ANSWER_GAIN)
    if has_too_few_rows(answers) or is_free_text(answers):
        return "unknown"
    return "poor"


def describe_task_answers(answers: TaskAnswers) -> str:
    """Describes the rating of a task's answers in a few words."""
    if rate_task_answers(answers) == "poor":
        return "at chance level"
    if rate_task_answers(answers) != "unknown":
        return "above chance"
    if answers.num_references == 1:
        return "not rated: a single reference"
    if has_too_few_rows(answers):
        return "too few answers to tell"
    return "not rated: free text"


def has_too_few_rows(answers: TaskAnswers) -> bool:
    """Whether even all answers but one being correct would not be significantly above the chance level."""
    return answers.one_error_p_value >= CHANCE_P_VALUE


def _is_unrated_for_few_rows(answers: TaskAnswers) -> bool:
    return rate_task_answers(answers) == "unknown" and answers.num_references > 1 and has_too_few_rows(answers)


def is_free_text(answers: TaskAnswers) -> bool:
    """Whether the references of a task are free texts rather than a few labels."""
    return answers.num_references > FREE_TEXT_SHARE * answers.num_rows


def _verdict(summary: SelectionSummary) -> Verdict:
    selection = _selection_verdict(summary)
    ratings = {task: rate_task_answers(answers) for task, answers in summary.answers.items()}
    at_chance = [task for task, rating in ratings.items() if rating == "poor"]
    too_few = [task for task, answers in summary.answers.items() if _is_unrated_for_few_rows(answers)]
    if too_few:
        told = f"There are too few answers for {_listed(too_few)} to tell whether they are above the chance level."
        selection = replace(selection, detail=f"{selection.detail} {told}")
    if not at_chance:
        return selection
    link = "but" if selection.rating == "good" else "and"
    headline = f"{selection.headline.removesuffix('.')}, {link} "
    detail = "The accuracy is not significantly above that of always giving the most frequent answer"
    if set(ratings.values()) <= {"poor", "unknown"}:
        return Verdict(
            "poor",
            f"{headline}the answers are at chance level.",
            f"{detail}, so the selections do not show what the adapter has learned. {selection.detail}",
        )
    return Verdict(
        _worse(selection.rating, "fair"),
        f"{headline}the answers of {_listed(at_chance)} are at chance level.",
        f"{detail} there. {selection.detail}",
    )


def _selection_verdict(summary: SelectionSummary) -> Verdict:
    if summary.mean_overlap is None:
        return Verdict(
            "unknown",
            "There is only one task, so nothing can be said about differences between tasks.",
            f"Its {summary.num_rows} inputs select {summary.live_prompts} of {summary.pool_size} prompts.",
        )
    pairs = shared_pairs(summary)
    detail = (
        f"On average, two tasks have {summary.mean_overlap:.0%} of their {summary.top} most selected prompts in common; "
        f"{summary.live_prompts} of {summary.pool_size} prompts are in use."
    )
    mean = _rating(summary.mean_overlap, OVERLAP, high_is_good=False)
    if mean == "poor":
        return Verdict("poor", "Collapse: the tasks select the same prompts.", detail)
    if mean == "fair":
        return Verdict("fair", "The tasks share most of their prompts.", detail)
    if pairs:
        names = _listed([f"{first} with {second} ({value:.0%})" for (first, second), value in pairs.items()])
        return Verdict("fair", f"The tasks select different prompts, except {names}.", detail)
    if _live_rating(summary) == "poor":
        return Verdict("fair", "The tasks select different prompts, but most of the pool is unused.", detail)
    return Verdict("good", "The tasks select different prompts.", detail)


def _rate_answers(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding | None:
    ratings = [rate_task_answers(answers) for answers in summary.answers.values()]
    rated = [rating for rating in ratings if rating != "unknown"]
    if not rated:
        return None
    above = len(rated) - rated.count("poor")
    unrated = len(ratings) - len(rated)
    return Finding(
        title="Tasks answered above chance",
        value=f"{above} of {len(rated)}",
        rating="poor" if above == 0 else "fair" if above < len(rated) else "good",
        goal="all tasks",
        meaning=(
            "Tasks with significantly more correct answers than always giving the most frequent reference would have."
            + (f" {unrated} of the tasks cannot be rated." if unrated else "")
        ),
        advice=advise(config, "fixed_length", "longer_training"),
        position=above / len(rated),
        goal_position=1.0,
    )


def _rate_overlap(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding | None:
    value = summary.mean_overlap
    if value is None:
        return None
    rating, meaning = _rating(value, OVERLAP, high_is_good=False), ""
    pair, worst = max(summary.overlap.items(), key=lambda item: item[1])
    if worst > value:
        meaning = f" The ring marks the most similar pair, {pair[0]} and {pair[1]}, with {worst:.2f}."
    if shared_pairs(summary):
        rating = _worse(rating, "fair")
    return Finding(
        title="Overlap of tasks",
        value=_number(value),
        rating=rating,
        goal=f"at most {OVERLAP[0]}, for every pair",
        meaning=(
            f"Fraction of the {summary.top} most selected prompts that two tasks have in common, averaged over all pairs. "
            f"1 is full collapse; random selection from this pool would give {summary.chance_overlap:.2f}.{meaning}"
        ),
        advice=advise(
            config,
            "center_queries",
            "standardize_queries",
            "query_ignored_token_ids",
            "init_keys_at_steps",
            "grouped",
            "shared_prompts",
        ),
        position=value,
        worst_position=worst if worst > value else None,
        goal_position=OVERLAP[0],
        high_is_good=False,
    )


def _live_rating(summary: SelectionSummary) -> Rating:
    return _rating(summary.live_prompts / summary.reachable_prompts, LIVE_SHARE)


def _rate_live_prompts(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding:
    goal, limit = f"at least {LIVE_SHARE[0]:.0%}", ""
    if summary.reachable_prompts < summary.pool_size:
        goal += f" of the {summary.reachable_prompts} that {summary.num_rows} inputs can select"
        limit = (
            f" This number of inputs can select at most {summary.reachable_prompts} of the {summary.pool_size} prompts; "
            "the rating is relative to those."
        )
    return Finding(
        title="Prompts in use",
        value=f"{summary.live_prompts} of {summary.pool_size}",
        rating=_live_rating(summary),
        goal=goal,
        meaning=f"Prompts that at least one input selects. The others have no effect.{limit}",
        advice=advise(config, "init_keys_at_steps", "grouped", "smaller_pool"),
        position=summary.live_prompts / summary.reachable_prompts,
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


def _rate_silhouette(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding | None:
    value = summary.silhouette
    if value is None:
        return None
    return Finding(
        title="Silhouette of queries",
        value=_number(value),
        rating=_rating(value, SILHOUETTE),
        goal=f"at least {SILHOUETTE[0]}",
        meaning=(
            "How compact the queries of each task are compared with their distance to other tasks, from -1 to 1. At 0 "
            "the tasks overlap."
        ),
        advice=advise(config, "query_pooling", "center_queries", "query_ignored_token_ids"),
        position=(value + 1) / 2,
        goal_position=(SILHOUETTE[0] + 1) / 2,
    )


def _rate_neighbors(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding | None:
    value, baseline = summary.neighbor_accuracy, summary.majority_share
    if value is None or baseline == 1:
        return None
    goal = baseline + NEIGHBOR_GAIN[0] * (1 - baseline)
    return Finding(
        title="Nearest-neighbor task accuracy",
        value=f"{value:.0%}",
        rating=_rating((value - baseline) / (1 - baseline), NEIGHBOR_GAIN),
        goal=f"at least {goal:.0%}",
        meaning=(
            "How often the five nearest queries of other inputs predict the task of a query. Always predicting the most "
            f"frequent task gives {baseline:.0%}."
        ),
        advice=advise(config, "projector", "wording"),
        position=value,
        goal_position=goal,
    )


def _rate_cosine(summary: SelectionSummary, config: Mapping[str, Any]) -> Finding | None:
    value = summary.query_cosine
    if summary.num_rows == 1:
        return None
    return Finding(
        title="Cosine of queries",
        value=_number(value),
        rating=_rating(value, QUERY_COSINE, high_is_good=False),
        goal=f"at most {QUERY_COSINE[0]}",
        meaning=(
            "Mean cosine similarity between the queries of two inputs, after any centering. Near 1, selection cannot "
            "distinguish the inputs."
        ),
        advice=advise(config, "center_queries", "query_pooling", "query_ignored_token_ids"),
        position=max(0.0, value),
        goal_position=QUERY_COSINE[0],
        high_is_good=False,
    )


def _rating(value: float, limits: tuple[float, float], high_is_good: bool = True) -> Rating:
    good, fair = limits
    sign = 1 if high_is_good else -1
    if sign * value >= sign * good:
        return "good"
    return "fair" if sign * value >= sign * fair else "poor"


def _worse(first: Rating, second: Rating) -> Rating:
    return min(first, second, key=_FROM_WORST.index)


def _listed(names: list[str]) -> str:
    """Joins the first names and states how many more there are."""
    shown = names[:_NAMES_SHOWN]
    if len(names) > len(shown):
        shown.append(f"{len(names) - len(shown)} more")
    return " and ".join(filter(None, [", ".join(shown[:-1]), shown[-1]]))


def _number(value: float) -> str:
    # Rounding can give "-0.00".
    return f"{value:.2f}".replace("-0.00", "0.00")
