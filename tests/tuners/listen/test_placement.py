"""Prompts are placed directly before the first real token of each row."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.tuners.listen.placement import PromptPlacement, positions_from_mask
from tests.device import place


MASK = place(torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]]))  # no test function makes it


def test_embeddings_are_inserted_before_the_first_real_token():
    embeds = torch.tensor([[1.0, 2, 3, 4], [0, 0, 7, 8], [5, 6, 0, 0]]).unsqueeze(-1)
    prompts = torch.tensor([[-1.0, -2], [-3, -4], [-5, -6]]).unsqueeze(-1)
    inserted = PromptPlacement(2, MASK).insert_embeds(embeds, prompts).squeeze(-1)
    assert inserted.tolist() == [[-1, -2, 1, 2, 3, 4], [0, 0, -3, -4, 7, 8], [-5, -6, 5, 6, 0, 0]]


def test_masks_and_positions_include_the_prompts():
    placement = PromptPlacement(2, MASK)
    assert placement.insert_mask(MASK).tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert placement.insert_mask(MASK.bool(), value=False).int().tolist() == [
        [0, 0, 1, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 1, 1, 0, 0],
    ]
    positions = placement.insert_positions(positions_from_mask(MASK))
    real = placement.insert_mask(MASK).bool()
    assert torch.equal(positions[real], positions_from_mask(placement.insert_mask(MASK))[real])


def test_positions_start_at_the_callers_first_position():
    placement = PromptPlacement(2)
    assert placement.insert_positions(torch.tensor([[5, 6, 7]])).tolist() == [[5, 6, 7, 8, 9]]
    axes = torch.tensor([[[0, 1, 1]], [[0, 1, 2]]])
    assert placement.insert_positions(axes).tolist() == [[[0, 1, 2, 3, 3]], [[0, 1, 2, 3, 4]]]


def test_one_row_of_positions_is_expanded_for_a_padded_batch():
    inserted = PromptPlacement(1, MASK).insert_positions(torch.arange(4)[None])
    assert inserted.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4]]


def test_rows_are_repeated_for_their_beams():
    repeated = PromptPlacement(2, MASK).repeat_rows(6)
    expected = PromptPlacement(2, MASK.repeat_interleave(2, dim=0))
    assert torch.equal(repeated.offset, expected.offset)
    assert PromptPlacement(2).repeat_rows(6).offset is None


@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=4),
    k=st.integers(1, 5),
)
@settings(max_examples=50, deadline=None)
def test_stripping_undoes_inserting(rows, k):
    length = max(sum(row) for row in rows)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    for i, (left, real, _) in enumerate(rows):
        mask[i, left : left + real] = 1
    embeds, prompts = torch.randn(len(rows), length, 3), torch.randn(len(rows), k, 3)
    placement = PromptPlacement(k, mask)
    inserted = placement.insert_embeds(embeds, prompts)
    assert torch.equal(placement.strip(inserted), embeds)
    assert torch.equal(placement.strip(placement.insert_mask(mask)), mask)
    for i, (left, _, _) in enumerate(rows):
        assert torch.equal(inserted[i, left : left + k], prompts[i])


def test_gradients_reach_prompts_and_embeddings():
    embeds, prompts = torch.randn(3, 4, 2, requires_grad=True), torch.randn(3, 2, 2, requires_grad=True)
    PromptPlacement(2, MASK).insert_embeds(embeds, prompts).sum().backward()
    assert torch.equal(embeds.grad, torch.ones(3, 4, 2))
    assert torch.equal(prompts.grad, torch.ones(3, 2, 2))
