"""Ratings of a summary and the advice for it."""

import dataclasses

import pytest

from peft_listen import ListenConfig
from peft_listen.analysis import summarize
from peft_listen.analysis.findings import overlap_mark, rate


@pytest.fixture
def summary(make_records):
    return summarize(make_records())


def ratings(summary, **changes):
    _, findings = rate(dataclasses.replace(summary, **changes))
    return {finding.title: finding.rating for finding in findings}


@pytest.mark.parametrize(
    ("title", "field", "values"),
    [
        ("Overlap of tasks", "mean_overlap", {"good": 0.5, "fair": 0.51, "poor": 0.81, "absent": None}),
        ("Prompts in use", "live_prompts", {"good": 80, "fair": 79, "poor": 39}),
        ("Silhouette of queries", "silhouette", {"good": 0.3, "fair": 0.29, "poor": 0.0, "absent": None}),
        (
            "Nearest-neighbor task accuracy",
            "neighbor_accuracy",
            {"good": 0.9, "fair": 0.8, "poor": 0.6, "absent": None},
        ),
        ("Cosine of queries", "query_cosine", {"good": -0.1, "fair": 0.95, "poor": 0.96}),
    ],
)
def test_a_statistic_is_rated_by_its_thresholds(summary, title, field, values) -> None:
    fixed = {"pool_size": 100, "reachable_prompts": 100, "majority_share": 0.5}
    found = {rating: ratings(summary, **fixed, **{field: value}) for rating, value in values.items()}
    assert {rating: of.get(title, "absent") for rating, of in found.items()} == {rating: rating for rating in values}


def test_neighbors_are_not_rated_if_all_rows_have_one_task(summary) -> None:
    assert "Nearest-neighbor task accuracy" not in ratings(summary, neighbor_accuracy=1.0, majority_share=1.0)


def test_a_single_task_has_findings_with_values_only(make_records) -> None:
    findings = rate(summarize(make_records(tasks=("asr",))))[1]
    assert [finding.title for finding in findings] == ["Prompts in use", "Effective prompts", "Cosine of queries"]
    assert all(any(character.isdigit() for character in finding.value) for finding in findings)
    findings = rate(summarize(make_records(tasks=("asr",), rows_per_task=1)))[1]
    assert [finding.title for finding in findings] == ["Prompts in use", "Effective prompts"]


PAIRS = (("asr", "captions"), ("asr", "emotion"), ("captions", "emotion"))


@pytest.mark.parametrize(
    ("overlaps", "rating", "headline"),
    [
        ((0.0, 0.5, 0.5), "good", "The tasks select different prompts."),
        ((0.0, 0.0, 1.0), "fair", "The tasks select different prompts, except captions with emotion (100%)."),
        (
            (0.6, 0.0, 0.7),
            "fair",
            "The tasks select different prompts, except captions with emotion (70%) and asr with captions (60%).",
        ),
        ((0.6, 0.6, 0.7), "fair", "The tasks share most of their prompts."),
        ((0.9, 0.9, 0.9), "poor", "Collapse: the tasks select the same prompts."),
    ],
)
def test_the_verdict_takes_the_worst_pair_into_account(summary, overlaps, rating, headline) -> None:
    mean = sum(overlaps) / 3
    changed = dataclasses.replace(summary, mean_overlap=mean, overlap=dict(zip(PAIRS, overlaps, strict=True)))
    verdict, (overlap, *_) = rate(changed)
    assert (verdict.rating, verdict.headline) == (rating, headline)
    assert overlap.rating == rating
    assert overlap.worst_position == (max(overlaps) if max(overlaps) > mean else None)


def test_of_many_pairs_the_first_three_are_named(summary) -> None:
    overlap = {("a", f"b{number}"): 0.9 - number / 100 for number in range(5)}
    verdict, _ = rate(dataclasses.replace(summary, mean_overlap=0.1, overlap=overlap))
    assert "except a with b0 (90%), a with b1 (89%), a with b2 (88%) and 2 more." in verdict.headline


@pytest.mark.parametrize(
    ("overlap", "mark"), [(0.0, ""), (0.5, ""), (0.51, "shared"), (0.8, "shared"), (0.81, "same")]
)
def test_pairs_are_marked_by_the_thresholds_of_the_overlap(overlap, mark) -> None:
    assert overlap_mark(overlap) == mark


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


def test_the_advice_reads_the_configuration(summary) -> None:
    def advice(config):
        return {finding.title: finding.advice for finding in rate(summary, config)[1]}

    given = advice(ListenConfig.paper().to_dict())
    assert given["Overlap of tasks"].startswith("set center_queries=True, leave the tokens of the chat template out")
    assert given["Silhouette of queries"].startswith('set query_pooling="modality_mean", set center_queries=True')
    given = advice(ListenConfig(query_ignored_token_ids=[1]).to_dict())
    assert given["Overlap of tasks"].startswith("set standardize_queries=True, initialize the keys from real queries")
    assert given["Silhouette of queries"] is given["Cosine of queries"] is None
