"""Positions of the query."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.tuners.listen.query import leading_padding, mean_query, prompt_positions
from tests.device import test_device


def positions_of(attention_mask=None, labels=None, query_mask=None, shape=(1, 5)):
    tensors = [None if rows is None else torch.tensor(rows) for rows in (attention_mask, labels, query_mask)]
    positions, without_prompt = prompt_positions(*shape, *tensors, device=test_device())
    return positions.int().tolist(), without_prompt.tolist()


def test_without_labels_every_token_is_in_the_query():
    assert positions_of() == ([[1, 1, 1, 1, 1]], [False])


@pytest.mark.parametrize("mask", [[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0]])
def test_padding_is_not_in_the_query(mask):
    assert positions_of([mask]) == ([mask], [False])


def test_the_query_ends_where_the_answer_begins():
    assert positions_of(labels=[[-100, -100, 7, 8, 9]]) == ([[1, 1, 0, 0, 0]], [False])
    # The prompt of a second turn follows the first answer.
    assert positions_of(labels=[[-100, 7, -100, -100, 9]]) == ([[1, 0, 0, 0, 0]], [False])
    assert positions_of([[0, 1, 1, 1, 1]], [[-100, -100, -100, 8, 9]]) == ([[0, 1, 1, 0, 0]], [False])


def test_without_an_answer_the_whole_row_is_the_prompt():
    assert positions_of(labels=[[-100] * 5]) == ([[1, 1, 1, 1, 1]], [False])


def test_a_row_that_is_supervised_from_its_first_token_uses_that_token():
    assert positions_of(labels=[[5, 6, 7, 8, 9]]) == ([[1, 0, 0, 0, 0]], [True])
    assert positions_of([[0, 0, 1, 1, 1]], [[-100, -100, 7, 8, 9]]) == ([[0, 0, 1, 0, 0]], [True])


def test_positions_can_be_given_by_a_mask():
    assert positions_of(query_mask=[[0, 1, 0, 1, 0]]) == ([[0, 1, 0, 1, 0]], [False])
    # Replaces the rule by labels; padding is still excluded.
    named = positions_of([[0, 1, 1, 1, 1]], [[-100, 5, 5, 5, 5]], [[1, 1, 0, 1, 0]])
    assert named == ([[0, 1, 0, 1, 0]], [False])
    assert positions_of([[0, 1, 1, 1, 1]], None, [[1, 0, 0, 0, 0]]) == ([[0, 1, 0, 0, 0]], [True])


def test_a_mask_of_another_shape_raises():
    with pytest.raises(ValueError, match=r"shape of the input, \(2, 4\), got \(1, 4\)"):
        prompt_positions(2, 4, query_mask=torch.ones(1, 4))


def test_leading_padding_counts_the_positions_before_the_first_token():
    masks = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 0, 1], [0, 0, 0, 0]])
    assert leading_padding(masks).tolist() == [[0], [2], [1], [0]]
    assert leading_padding(masks.bool()).tolist() == leading_padding(masks.float()).tolist() == [[0], [2], [1], [0]]


@given(seed=st.integers(0, 2**16), left=st.integers(0, 4), right=st.integers(0, 4), answer=st.integers(0, 4))
@settings(max_examples=40, deadline=None)
def test_neither_padding_nor_the_answer_changes_the_query(seed, left, right, answer):
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(1, 5, 8, generator=generator)

    def filled(length):
        return torch.full((1, length, 8), torch.nan) if seed % 2 else torch.randn(1, length, 8, generator=generator)

    embeds = torch.cat([filled(left), prompt, filled(answer), filled(right)], dim=1)
    length = embeds.shape[1]
    index = torch.arange(length)
    mask = ((index >= left) & (index < length - right)).long()[None]
    labels = torch.where((index >= left + 5) & (index < length - right), 3, -100)[None]
    positions, _ = prompt_positions(1, length, mask, labels, device=test_device())
    torch.testing.assert_close(mean_query(embeds, positions), prompt.mean(dim=1))


def test_the_mean_is_taken_in_float32():
    embeds = torch.full((1, 4096, 1), 1.0, dtype=torch.bfloat16)
    embeds[:, 0] = 0.0
    query = mean_query(embeds, torch.ones(1, 4096, dtype=torch.bool))
    assert query.dtype == torch.float32
    torch.testing.assert_close(query, torch.tensor([[4095 / 4096]]))
