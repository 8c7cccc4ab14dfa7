"""Statistics of prompt usage, compared with numbers by hand."""

import pytest
import torch

from peft_listen.analysis import PromptUsage
from peft_listen.analysis.usage import format_overlap


@pytest.fixture
def usage():
    usage = PromptUsage(pool_size=8)
    usage.add(torch.tensor([[0, 1], [0, 2], [5, 1]]), ["speech", "speech", "sound"])
    usage.add(torch.tensor([[5, 6], [7, 7]]), ["sound", "music"])
    return usage


def test_live_prompts_are_those_selected_by_any_task(usage):
    assert usage.live_prompts() == 6  # 0, 1, 2, 5, 6, 7
    assert PromptUsage(pool_size=8).live_prompts() == 0


def test_top_prompts_are_the_most_selected_and_ties_go_to_the_lower_index(usage):
    assert usage.top_prompts("speech", 3) == [0, 1, 2]
    assert usage.top_prompts("sound", 2) == [5, 1]
    assert usage.top_prompts("music", 5) == [7]


def test_overlap_is_the_fraction_of_common_top_prompts(usage):
    assert usage.task_overlap(top=3) == {("music", "sound"): 0.0, ("music", "speech"): 0.0, ("sound", "speech"): 1 / 3}
    assert usage.task_overlap(top=2)[("sound", "speech")] == 0.5
    assert usage.mean_task_overlap(top=2) == pytest.approx(0.5 / 3)


def test_fewer_than_two_tasks_have_no_overlap():
    usage = PromptUsage(pool_size=2)
    assert usage.mean_task_overlap() == 0.0
    usage.add(torch.tensor([[0]]), ["speech"])
    assert usage.task_overlap() == {}
    assert usage.mean_task_overlap() == 0.0


def test_entropy_is_in_bits(usage):
    assert usage.entropy("music") == 0.0
    assert usage.entropy("speech") == pytest.approx(1.5)  # 1/2, 1/4, 1/4
    same = PromptUsage(pool_size=8)
    same.add(torch.tensor([[0, 1, 2, 3]] * 5), ["speech"] * 5)
    assert same.entropy("speech") == pytest.approx(2.0)


def test_different_numbers_of_rows_and_tasks_raise():
    with pytest.raises(ValueError, match="2 rows of selections, but 1 tasks"):
        PromptUsage(pool_size=8).add(torch.tensor([[0], [1]]), ["speech"])


@pytest.mark.parametrize("index", [-1, 8])
def test_an_index_outside_the_pool_raises(index):
    with pytest.raises(ValueError, match="outside the pool of 8 prompts"):
        PromptUsage(pool_size=8).add(torch.tensor([[0, index]]), ["speech"])


def test_an_unknown_task_raises_and_lists_the_known_ones(usage):
    for call in (lambda: usage.entropy("asr"), lambda: usage.top_prompts("asr", 1)):
        with pytest.raises(KeyError, match=r"no task 'asr'.*\['music', 'sound', 'speech'\]"):
            call()


def test_the_table_is_aligned_and_symmetric(usage):
    table = format_overlap(usage.task_overlap(top=2))
    assert table.splitlines() == [
        "        music  sound  speech",
        "music    1.00   0.00    0.00",
        "sound    0.00   1.00    0.50",
        "speech   0.00   0.50    1.00",
    ]
