"""Summary statistics, compared with counts by hand."""

import json

import pytest
import torch

from peft_listen.analysis import SelectionRecords, summarize


@pytest.fixture
def records():
    return SelectionRecords(
        indices=torch.tensor([[0, 1], [0, 2], [4, 1], [4, 1]]),
        scores=torch.zeros(4, 2),
        queries=torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]]),
        keys=torch.ones(8, 2),
        tasks=["speech", "speech", "sound", "sound"],
    )


def test_the_statistics_equal_counts_by_hand(records) -> None:
    summary = summarize(records, top=2)
    assert (summary.num_rows, summary.pool_size, summary.prompt_length, summary.top) == (4, 8, 2, 2)
    assert summary.live_prompts == 4
    assert summary.overlap == {("sound", "speech"): 0.5}  # {4, 1} and {0, 1}
    assert summary.mean_overlap == 0.5
    assert summary.chance_overlap == 0.25
    # The prompts 0, 2, 1, 4 are selected 2, 1, 3, 2 times of 8.
    shares = torch.tensor([2, 1, 3, 2]) / 8
    assert summary.effective_prompts == pytest.approx(float(2 ** -(shares * shares.log2()).sum()))
    assert summary.silhouette == pytest.approx(1.0)
    assert summary.majority_share == 0.5
    assert summary.query_cosine == pytest.approx(2 / 6)
    assert summary.key_cosine == pytest.approx(1.0)
    assert summary.top_prompt_share == 0.5  # the prompts 0 and 4 are first in two rows each


def test_each_task_has_its_own_statistics(records) -> None:
    tasks = summarize(records, top=2).tasks
    assert list(tasks) == ["sound", "speech"]
    assert tasks["sound"].top_prompts == [(1, 1.0), (4, 1.0)]
    assert tasks["speech"].top_prompts == [(0, 1.0), (1, 0.5)]
    assert (tasks["sound"].live_prompts, tasks["sound"].num_rows) == (2, 2)
    assert tasks["sound"].entropy == pytest.approx(1.0)
    assert tasks["sound"].effective_prompts == pytest.approx(2.0)


def test_few_rows_can_reach_only_part_of_the_pool(records, make_records) -> None:
    assert summarize(make_records()).reachable_prompts == 48
    assert summarize(make_records(rows_per_task=2, pool_size=100)).reachable_prompts == 3 * 2 * 4


def test_a_single_task_has_no_overlap(make_records) -> None:
    summary = summarize(make_records(tasks=("asr",)))
    assert summary.mean_overlap is None
    assert summary.silhouette is None
    assert summary.overlap == {}


def test_separated_tasks_differ_from_overlapping_ones(make_records) -> None:
    apart, together = summarize(make_records()), summarize(make_records(apart=False))
    assert apart.mean_overlap < 0.1 < together.mean_overlap
    assert apart.silhouette > 0.5 > together.silhouette
    assert apart.neighbor_accuracy > 0.9 > together.neighbor_accuracy
    assert apart.query_cosine < 0.5 < 0.9 < together.query_cosine


def test_a_summary_is_json_serializable(records) -> None:
    as_json = json.loads(json.dumps(summarize(records, top=2).to_dict()))
    assert as_json["overlap"] == [["sound", "speech", 0.5]]
    assert as_json["tasks"]["speech"]["top_prompts"] == [[0, 1.0], [1, 0.5]]
    assert as_json["live_prompts"] == 4


def test_top_below_one_raises(records) -> None:
    with pytest.raises(ValueError, match="`top` must be at least 1, got 0"):
        summarize(records, top=0)
