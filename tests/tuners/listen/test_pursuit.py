"""Matching pursuit caches the Gram matrix of the keys until they change."""

import copy
import pickle

import pytest
import torch

from peft_listen.tuners.listen.selectors.pursuit import MatchingPursuit


def check(pursuit, query, keys, k=5):
    for ours, expected in zip(
        pursuit(query, keys, k), MatchingPursuit(pursuit.step_size)(query, keys, k), strict=True
    ):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("step_size", [0.0, 0.5, 1.0])
def test_changed_keys_are_detected_no_matter_how_they_change(draw, step_size):
    pursuit = MatchingPursuit(step_size)
    query, keys = draw(0)
    keys = torch.nn.Parameter(keys)
    check(pursuit, query, keys)
    with torch.no_grad():
        keys.add_(draw(1)[1])
    check(pursuit, query, keys)
    keys.data.copy_(draw(2)[1])  # not registered by the version counter
    check(pursuit, query, keys)
    keys.data[3, 2] += 5.0
    check(pursuit, query, keys)
    check(pursuit, query, draw(3, pool_size=9)[1])
    check(pursuit, *(tensor.double() for tensor in draw(4, pool_size=9)))
    check(pursuit, *draw(0))


@pytest.mark.cpu_only("on other devices the matrix is not kept, because comparing the keys waits for them")
def test_the_gram_matrix_is_computed_once_for_the_same_keys(draw):
    pursuit = MatchingPursuit()
    query, keys = draw(0)
    pursuit(query, keys, 3)
    geometry = pursuit._geometry
    pursuit(query + 1, keys.clone(), 7)
    assert pursuit._geometry is geometry
    pursuit(query, keys + 1, 3)
    assert pursuit._geometry is not geometry


def test_it_can_be_used_in_training_after_inference_mode(draw):
    pursuit = MatchingPursuit()
    query, keys = draw(0)
    keys.requires_grad_()
    with torch.inference_mode():
        expected, _ = pursuit(query, keys, 4)
    indices, scores = pursuit(query.requires_grad_(), keys, 4)
    assert torch.equal(indices, expected)
    assert not scores.requires_grad


def test_copies_contain_no_tensors(draw):
    pursuit = MatchingPursuit(0.5)
    query, keys = draw(0)
    pursuit(query, keys, 3)
    for duplicate in (copy.deepcopy(pursuit), pickle.loads(pickle.dumps(pursuit))):
        assert duplicate._geometry is None
        assert duplicate.step_size == 0.5
        check(duplicate, query, keys)


def test_scores_are_finite_for_a_query_with_a_zero_residual():
    keys = torch.eye(4)
    indices, scores = MatchingPursuit()(keys[2:3] * 3, keys, 4)
    assert indices.tolist() == [[2, 0, 1, 3]]
    assert scores.tolist() == [[1.0, 0.0, 0.0, 0.0]]
