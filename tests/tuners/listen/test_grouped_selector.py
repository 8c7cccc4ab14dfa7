"""The grouped selector assigns each prompt a fixed position."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen import get_selector


@given(seed=st.integers(0, 2**16), num_groups=st.sampled_from([1, 2, 4, 5, 10, 20]), k=st.integers(1, 20))
@settings(max_examples=40, deadline=None)
def test_every_position_has_the_best_remaining_prompt_of_its_group(draw, seed, num_groups, k):
    query, keys = draw(seed)
    selection = get_selector("grouped", num_groups=num_groups).select(query, keys, k)
    cosine = torch.cosine_similarity(query[:, None], keys[None], dim=-1)
    size = 20 // num_groups
    for row, (selected, scores) in enumerate(zip(selection.indices.tolist(), selection.scores, strict=True)):
        assert len(set(selected)) == k
        for place, index in enumerate(selected):
            group = place % num_groups
            assert index // size == group
            left = [i for i in range(group * size, (group + 1) * size) if i not in selected[:place]]
            assert cosine[row, index] >= cosine[row, left].max() - 1e-6
        torch.testing.assert_close(scores, cosine[row, selected])


@given(seed=st.integers(0, 2**16), k=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_one_group_is_similarity_and_a_shorter_prompt_is_a_prefix(draw, seed, k):
    query, keys = draw(seed)
    similarity = get_selector("similarity").select(query, keys, k)
    assert torch.equal(get_selector("grouped", num_groups=1).select(query, keys, k).indices, similarity.indices)
    grouped = get_selector("grouped", num_groups=5)
    longest = grouped.select(query, keys, 20)
    assert torch.equal(grouped.select(query, keys, k).indices, longest.indices[:, :k])


def test_a_value_has_the_same_position_for_every_input(draw):
    query, keys = draw(0, rows=200)
    indices = get_selector("grouped", num_groups=5).select(query, keys, 5).indices
    assert torch.equal(indices // 4, torch.arange(5).expand(200, 5))
    assert len(indices.unique()) == 20


def test_the_keys_of_each_group_cover_all_queries(build, attach):
    model = attach(build(), selector="grouped", selector_kwargs={"num_groups": 4}, pool_size=12, prompt_length=4)
    generator = torch.Generator().manual_seed(0)
    centers = 5 * torch.randn(3, 32, generator=generator)
    queries = centers.repeat(20, 1) + 0.01 * torch.randn(60, 32, generator=generator)
    model.base_model.init_keys_from(queries)
    layer = model.base_model.layer
    keys = layer.listen_pools["default"].keys.detach() + layer.listen_pools["default"].query_mean
    for group in keys.split(3):
        # One key of each group lies at each center.
        assert sorted(torch.cdist(group, centers).argmin(dim=-1).tolist()) == [0, 1, 2]
        assert torch.cdist(group, centers).min(dim=-1).values.max() < 0.1


@pytest.mark.parametrize("num_groups", [0, -1, 2.0, True])
def test_invalid_numbers_of_groups_raise(num_groups):
    with pytest.raises(ValueError, match="`num_groups` must be an integer of at least 1"):
        get_selector("grouped", num_groups=num_groups)


@pytest.mark.parametrize(("pool_size", "sizes"), [(12, [3, 3, 2, 2, 2]), (3, [1, 1, 1]), (5, [1] * 5)])
def test_group_sizes_differ_by_at_most_one(draw, pool_size, sizes):
    query, keys = draw(0, rows=300, pool_size=pool_size)
    indices = get_selector("grouped", num_groups=5).select(query, keys, pool_size).indices
    assert all(sorted(row) == list(range(pool_size)) for row in indices.tolist())
    start = 0
    for place, size in enumerate(sizes):
        assert set(indices[:, place].tolist()) == set(range(start, start + size))
        start += size
