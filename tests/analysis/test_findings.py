"""What is called good, fair and poor."""

import dataclasses

import pytest

from peft_listen.analysis import judge, summarize


@pytest.fixture
def summary(make_records):
    return summarize(make_records())


def ratings(summary, **changes):
    _, findings = judge(dataclasses.replace(summary, **changes))
    return {finding.title: finding.rating for finding in findings}


@pytest.mark.parametrize(
    ("title", "field", "values"),
    [
        ("Overlap of tasks", "mean_overlap", {"good": 0.5, "fair": 0.51, "poor": 0.81, "unknown": None}),
        ("Prompts in use", "live_prompts", {"good": 80, "fair": 79, "poor": 39}),
        ("Silhouette of queries", "silhouette", {"good": 0.3, "fair": 0.29, "poor": 0.0, "unknown": None}),
        ("Task told by neighbours", "neighbor_accuracy", {"good": 0.9, "fair": 0.8, "poor": 0.6, "unknown": None}),
        ("Cosine of queries", "query_cosine", {"good": -0.1, "fair": 0.95, "poor": 0.96}),
    ],
)
def test_a_number_is_rated_by_where_it_lies(summary, title, field, values) -> None:
    fixed = {"pool_size": 100, "reachable_prompts": 100, "majority_share": 0.5}
    assert {rating: ratings(summary, **fixed, **{field: value})[title] for rating, value in values.items()} == {
        rating: rating for rating in values
    }


def test_where_every_row_has_one_task_neighbours_prove_nothing(summary) -> None:
    assert ratings(summary, neighbor_accuracy=1.0, majority_share=1.0)["Task told by neighbours"] == "unknown"


def test_the_share_in_use_is_of_the_prompts_that_so_few_inputs_can_reach(summary) -> None:
    changed = dataclasses.replace(summary, pool_size=400, live_prompts=36, reachable_prompts=40)
    live = judge(changed)[1][1]
    assert (live.rating, live.value) == ("good", "36 of 400")
    assert "no more than 40 of the 400" in live.meaning


@pytest.mark.parametrize(
    ("overlap", "live_prompts", "rating", "headline"),
    [
        (0.2, 40, "good", "The tasks choose different prompts."),
        (0.2, 5, "fair", "most of the pool lies idle"),
        (0.7, 40, "fair", "share most of their prompts"),
        (1.0, 40, "poor", "Collapse"),
        (None, 40, "unknown", "one task only"),
    ],
)
def test_the_verdict_follows_from_overlap_and_prompts_in_use(summary, overlap, live_prompts, rating, headline) -> None:
    verdict, _ = judge(dataclasses.replace(summary, mean_overlap=overlap, live_prompts=live_prompts))
    assert verdict.rating == rating
    assert headline in verdict.headline


def test_every_finding_that_can_be_poor_says_what_to_try(summary) -> None:
    for finding in judge(summary)[1]:
        assert finding.meaning
        assert bool(finding.goal) == bool(finding.advice)
        assert finding.position is None or 0 <= finding.position <= 1
