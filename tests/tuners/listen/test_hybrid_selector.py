"""The hybrid selector is between those of the paper, and its weights propagate the gradient of the loss to the keys."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen import get_selector


@pytest.fixture
def clustered():
    """Queries among keys that come in 12 clusters of 10 near-copies."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(12, 32, generator=generator)
    keys = centers.repeat_interleave(10, dim=0) + 0.3 * torch.randn(120, 32, generator=generator)
    query = torch.rand(64, 12, generator=generator).square() @ centers
    return query + 0.3 * torch.randn(64, 32, generator=generator), keys


@given(seed=st.integers(0, 2**16), k=st.integers(1, 20))
@settings(max_examples=25, deadline=None)
def test_its_limits_are_the_selections_of_similarity_and_residual(draw, seed, k):
    query, keys = draw(seed)
    for step_size, name in ((0, "similarity"), (1, "residual")):
        hybrid = get_selector("hybrid", step_size=step_size).select(query, keys, k)
        expected = get_selector(name).select(query, keys, k)
        assert torch.equal(hybrid.indices, expected.indices)
        torch.testing.assert_close(hybrid.scores, expected.scores)


@pytest.mark.parametrize("step_size", [0.25, 0.5, 0.9])
def test_it_subtracts_a_fraction_of_each_selected_keys_component(draw, step_size):
    query, keys = (tensor.double() for tensor in draw(1))
    selection = get_selector("hybrid", step_size=step_size).select(query, keys, 8)
    unit_keys = keys / keys.norm(dim=-1, keepdim=True)
    for row, indices, scores in zip(query, selection.indices.tolist(), selection.scores, strict=True):
        left, selected = row / row.norm(), []
        for index, score in zip(indices, scores, strict=True):
            cosines = unit_keys @ left / left.norm()
            cosines[selected] = -torch.inf
            assert index == int(cosines.argmax())
            torch.testing.assert_close(score, cosines[index])
            left = left - step_size * (left @ unit_keys[index]) * unit_keys[index]
            selected.append(index)


def test_its_keys_are_less_similar_than_those_of_similarity_and_closer_than_those_of_residual(clustered):
    query, keys = clustered
    alike, close = {}, {}
    for name in ("similarity", "hybrid", "residual"):
        selected = torch.nn.functional.normalize(keys[get_selector(name).select(query, keys, 10).indices], dim=-1)
        gram = selected @ selected.transpose(1, 2)
        alike[name] = float((gram.sum(dim=(1, 2)) - 10).mean() / 90)
        close[name] = float((selected @ torch.nn.functional.normalize(query, dim=-1).unsqueeze(-1)).mean())
    assert alike["residual"] < alike["hybrid"] < alike["similarity"] - 0.1
    assert close["residual"] + 0.1 < close["hybrid"] < close["similarity"]


def test_weights_are_a_softmax_over_the_selected_keys(draw):
    query, keys = draw(2)
    for k in (1, 5, 20):
        selection = get_selector("hybrid", temperature=0.2).select(query, keys, k)
        cosines = torch.nn.functional.cosine_similarity(query[:, None], keys[selection.indices], dim=-1)
        torch.testing.assert_close(selection.weights, (cosines / 0.2).softmax(dim=-1) * k)
        torch.testing.assert_close(selection.weights.mean(dim=-1), torch.ones(3))


def test_the_ratio_of_weights_is_bounded_for_large_queries(draw):
    query, keys = draw(3, rows=50, pool_size=100)
    for temperature in (0.5, 1.0):
        weights = get_selector("hybrid", temperature=temperature).select(1e4 * query, keys, 100).weights
        assert (weights.max(dim=-1).values / weights.min(dim=-1).values).max() <= math.exp(2 / temperature)
    attention = get_selector("attention").select(1e4 * query, keys, 100).weights
    assert (attention.min(dim=-1).values == 0).all()  # unlike the paper's


def test_the_keys_get_the_gradient_of_the_loss(draw):
    query, keys = draw(4)
    keys.requires_grad_()
    selection = get_selector("hybrid").select(query, keys, 5)
    (selection.weights * torch.arange(5.0)).sum().backward()
    selected = torch.zeros(20, dtype=torch.bool).index_fill(0, selection.indices.flatten(), True)
    assert (keys.grad[selected].abs().sum(dim=-1) > 0).all()
    assert torch.equal(keys.grad[~selected], torch.zeros_like(keys.grad[~selected]))


def test_gradients_are_finite_for_queries_and_keys_of_zeros():
    query, keys = torch.zeros(1, 4, requires_grad=True), torch.zeros(3, 4, requires_grad=True)
    selection = get_selector("hybrid").select(query, keys, 2)
    (selection.weights * torch.arange(2.0)).sum().backward()
    assert query.grad.isfinite().all() and keys.grad.isfinite().all()


def test_the_loss_of_a_model_trains_the_keys_without_a_key_loss(build, attach, tokens):
    model = attach(build(), selector="hybrid", key_loss_weight=0.0, stochastic_prompt_length=False).train()
    input_ids = tokens()
    model(input_ids=input_ids, labels=input_ids.masked_fill(torch.arange(6) < 3, -100)).loss.backward()
    assert model.layer.listen_pools["default"].keys.grad.abs().max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": -0.1}, "`step_size` must be from 0 to 1, got -0.1"),
        ({"step_size": 1.5}, "`step_size` must be from 0 to 1, got 1.5"),
        ({"step_size": math.nan}, "`step_size` must be from 0 to 1, got nan"),
        ({"temperature": 0}, "`temperature` must be above 0, got 0"),
    ],
)
def test_invalid_settings_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        get_selector("hybrid", **settings)
