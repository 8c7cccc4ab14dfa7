"""Ratings of a summary and the advice for it."""

import dataclasses

import pytest

from peft_listen.analysis import summarize
from peft_listen.analysis.findings import rate


@pytest.fixture
def summary(make_records):
    return summarize(make_records())


def ratings(summary, **changes):
    _, findings = rate(dataclasses.replace(summary, **changes))
    return {finding.title: finding.rating for finding in findings}


@pytest.mark.parametrize(
    ("title", "field", "values"),
    [
        ("Overlap of tasks", "mean_overlap", {"good": 0.5, "fair": 0.51, "poor": 0.81, "unknown": None}),
        ("Prompts in use", "live_prompts", {"good": 80, "fair": 79, "poor": 39}),
        ("Silhouette of queries", "silhouette", {"good": 0.3, "fair": 0.29, "poor": 0.0, "unknown": None}),
        (
            "Nearest-neighbour task accuracy",
            "neighbor_accuracy",
            {"good": 0.9, "fair": 0.8, "poor": 0.6, "unknown": None},
        ),
        ("Cosine of queries", "query_cosine", {"good": -0.1, "fair": 0.95, "poor": 0.96}),
    ],
)
def test_a_statistic_is_rated_by_its_thresholds(summary, title, field, values) -> None:
    fixed = {"pool_size": 100, "reachable_prompts": 100, "majority_share": 0.5}
    assert {rating: ratings(summary, **fixed, **{field: value})[title] for rating, value in values.items()} == {
        rating: rating for rating in values
    }


def test_neighbours_are_not_rated_if_all_rows_have_one_task(summary) -> None:
    assert ratings(summary, neighbor_accuracy=1.0, majority_share=1.0)["Nearest-neighbour task accuracy"] == "unknown"


def test_prompts_in_use_are_rated_relative_to_the_reachable_ones(summary) -> None:
    changed = dataclasses.replace(summary, pool_size=400, live_prompts=36, reachable_prompts=40)
    live = rate(changed)[1][1]
    assert (live.rating, live.value) == ("good", "36 of 400")
    assert "at most 40 of the 400" in live.meaning


@pytest.mark.parametrize(
    ("overlap", "live_prompts", "rating", "headline"),
    [
        (0.2, 40, "good", "The tasks select different prompts."),
        (0.2, 5, "fair", "most of the pool is unused"),
        (0.7, 40, "fair", "share most of their prompts"),
        (1.0, 40, "poor", "Collapse"),
        (None, 40, "unknown", "only one task"),
    ],
)
def test_the_verdict_depends_on_overlap_and_prompts_in_use(summary, overlap, live_prompts, rating, headline) -> None:
    verdict, _ = rate(dataclasses.replace(summary, mean_overlap=overlap, live_prompts=live_prompts))
    assert verdict.rating == rating
    assert headline in verdict.headline


def test_every_rated_finding_has_advice(summary) -> None:
    for finding in rate(summary)[1]:
        assert finding.meaning
        assert bool(finding.goal) == bool(finding.advice)
        assert finding.position is None or 0 <= finding.position <= 1


def advice(summary, config):
    _, findings = rate(summary, config)
    return {finding.title: finding.advice for finding in findings}


def test_options_that_are_already_set_are_not_advised(summary) -> None:
    initialize = "initialize the keys from real queries (ListenCallback(init_keys_at_steps=...))"
    grouped = 'use selector="grouped" with shared prompts (num_shared_prompts)'
    given = advice(summary, {"center_queries": False, "query_pooling": "mean", "selector": "similarity"})
    assert given["Overlap of tasks"] == f"set center_queries=True, {initialize}, or {grouped}"
    assert given["Silhouette of queries"] == 'set query_pooling="modality_mean", or set center_queries=True'
    given = advice(summary, {"center_queries": True, "query_pooling": "modality_mean", "selector": "attention"})
    assert given["Overlap of tasks"] == f"{initialize}, or {grouped}"
    assert given["Silhouette of queries"] is given["Cosine of queries"] is None
    given = advice(summary, {"center_queries": True, "selector": "grouped", "num_shared_prompts": 4})
    assert given["Overlap of tasks"] == initialize
