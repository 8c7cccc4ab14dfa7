"""What a log of selections says of tasks, and what the cosine says of collapse, held to numbers by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.analysis import SelectionLog, format_overlap, mean_pairwise_cosine


@pytest.fixture
def log():
    log = SelectionLog(pool_size=8)
    log.add(torch.tensor([[0, 1], [0, 2], [5, 1]]), ["speech", "speech", "sound"])
    log.add(torch.tensor([[5, 6], [7, 7]]), ["sound", "music"])
    return log


def test_live_prompts_are_those_chosen_by_any_task(log):
    assert log.live_prompts() == 6  # 0, 1, 2, 5, 6, 7
    assert SelectionLog(pool_size=8).live_prompts() == 0


def test_a_tasks_top_prompts_are_the_most_chosen_and_ties_go_to_the_lower(log):
    assert log.top_prompts("speech", 3) == [0, 1, 2]
    assert log.top_prompts("sound", 2) == [5, 1]
    assert log.top_prompts("music", 5) == [7]


def test_overlap_is_the_share_of_common_top_prompts(log):
    assert log.task_overlap(top=3) == {("music", "sound"): 0.0, ("music", "speech"): 0.0, ("sound", "speech"): 1 / 3}
    assert log.task_overlap(top=2)[("sound", "speech")] == 0.5
    assert log.mean_task_overlap(top=2) == pytest.approx(0.5 / 3)


def test_fewer_than_two_tasks_overlap_nowhere():
    log = SelectionLog(pool_size=2)
    assert log.mean_task_overlap() == 0.0
    log.add(torch.tensor([[0]]), ["speech"])
    assert log.task_overlap() == {}
    assert log.mean_task_overlap() == 0.0


def test_entropy_counts_bits(log):
    assert log.entropy("music") == 0.0
    assert log.entropy("speech") == pytest.approx(1.5)  # 1/2, 1/4, 1/4
    same = SelectionLog(pool_size=8)
    same.add(torch.tensor([[0, 1, 2, 3]] * 5), ["speech"] * 5)
    assert same.entropy("speech") == pytest.approx(2.0)


def test_rows_and_tasks_must_be_as_many():
    with pytest.raises(ValueError, match="2 rows of selections, but 1 tasks"):
        SelectionLog(pool_size=8).add(torch.tensor([[0], [1]]), ["speech"])


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_outside_the_pool_is_refused(index):
    with pytest.raises(ValueError, match="outside the pool of 8 prompts"):
        SelectionLog(pool_size=8).add(torch.tensor([[0, index]]), ["speech"])


def test_an_unknown_task_is_refused_with_those_there_are(log):
    for call in (lambda: log.entropy("asr"), lambda: log.top_prompts("asr", 1)):
        with pytest.raises(KeyError, match=r"no task 'asr'.*\['music', 'sound', 'speech'\]"):
            call()


def test_the_table_is_aligned_and_symmetric(log):
    table = format_overlap(log.task_overlap(top=2))
    assert table.splitlines() == [
        "        music  sound  speech",
        "music    1.00   0.00    0.00",
        "sound    0.00   1.00    0.50",
        "speech   0.00   0.50    1.00",
    ]


def test_the_mean_cosine_is_that_of_all_pairs():
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]])) == pytest.approx(0.0, abs=1e-6)
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1 / 3)
    assert mean_pairwise_cosine(torch.ones(4, 3)) == pytest.approx(1.0)
    assert mean_pairwise_cosine(torch.ones(1, 3)) == 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 1000))
def test_the_mean_cosine_equals_the_one_by_a_loop(count, size, seed):
    vectors = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    expected = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    assert mean_pairwise_cosine(vectors) == pytest.approx(float(expected), abs=1e-5)
