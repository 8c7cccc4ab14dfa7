"""The selector protocol, the registry, and the selections of the registered selectors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen import Selection, Selector, available_selectors, get_selector, register_selector
from peft_listen.tuners.listen.selectors import base as selectors_module
from tests.device import test_device


BUILT_IN = ["attention", "residual", "similarity"]


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(selectors_module, "_SELECTORS", dict(selectors_module._SELECTORS))


# The grouped selector's selection depends on the index of a prompt in the pool; see `test_grouped_selector.py`.
OF_THE_WHOLE_POOL = [name for name in available_selectors() if name != "grouped"]


@st.composite
def queries_and_keys(draw):
    seed, rows = draw(st.integers(0, 2**16)), draw(st.integers(1, 3))
    pool_size, size = draw(st.integers(1, 12)), draw(st.integers(2, 8))
    generator = torch.Generator().manual_seed(seed)
    # In float64: where little is left of a query, the residual selector magnifies the rounding of float32.
    query, keys = (torch.randn(count, size, generator=generator, dtype=torch.float64) for count in (rows, pool_size))
    return query, keys


@pytest.mark.parametrize("name", available_selectors())
@given(data=queries_and_keys(), share=st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_a_shorter_selection_is_a_prefix_of_a_longer_one(name, data, share):
    query, keys = data
    selector, k = get_selector(name), max(1, round(share * len(keys)))
    longest = selector.select(query, keys, len(keys))
    shorter = selector.select(query, keys, k)
    assert torch.equal(shorter.indices, longest.indices[:, :k])
    torch.testing.assert_close(shorter.scores, longest.scores[:, :k])


@pytest.mark.parametrize("name", OF_THE_WHOLE_POOL)
@given(data=queries_and_keys(), seed=st.integers(0, 2**16))
@settings(max_examples=25, deadline=None)
def test_permuting_the_pool_only_permutes_the_selection(name, data, seed):
    query, keys = data
    selector, k = get_selector(name), (len(keys) + 1) // 2
    permutation = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))
    before, after = selector.select(query, keys, k), selector.select(query, keys[permutation], k)
    assert torch.equal(permutation[after.indices], before.indices)
    torch.testing.assert_close(after.scores, before.scores, atol=1e-6, rtol=1e-6)
    if before.weights is not None:
        torch.testing.assert_close(after.weights, before.weights)


@pytest.mark.parametrize("name", available_selectors())
@given(data=queries_and_keys())
@settings(max_examples=25, deadline=None)
def test_rows_are_independent_and_no_prompt_is_selected_twice(name, data):
    query, keys = data
    selection = get_selector(name).select(query, keys, len(keys))
    assert all(sorted(row) == list(range(len(keys))) for row in selection.indices.tolist())
    for i, row in enumerate(query):
        alone = get_selector(name).select(row[None], keys, len(keys))
        assert torch.equal(alone.indices[0], selection.indices[i])


@pytest.mark.parametrize("name", OF_THE_WHOLE_POOL)
def test_ties_are_broken_by_the_index_in_the_pool(name):
    query, keys = torch.ones(1, 4), torch.ones(5, 4)
    for k in range(1, 6):
        assert get_selector(name).select(query, keys, k).indices.tolist() == [list(range(k))]


@pytest.mark.parametrize("name", available_selectors())
def test_a_query_of_zeros_gives_a_finite_selection(name):
    selection = get_selector(name).select(torch.zeros(1, 4), torch.randn(5, 4), 5)
    assert selection.scores.isfinite().all()
    assert selection.weights is None or selection.weights.isfinite().all()


def test_similarity_selects_the_highest_cosines_in_descending_order():
    query, keys = torch.randn(3, 8), torch.randn(20, 8) * torch.rand(20, 1) * 10
    selection = get_selector("similarity").select(query, keys, 5)
    cosines = torch.nn.functional.cosine_similarity(query[:, None], keys[None], dim=-1)
    torch.testing.assert_close(selection.scores, cosines.gather(1, selection.indices))
    assert (selection.scores.diff(dim=-1) <= 0).all()
    unchosen = cosines.scatter(1, selection.indices, -2)
    assert (unchosen.max(dim=-1).values <= selection.scores[:, -1]).all()
    assert selection.weights is None


def test_attention_weights_have_a_mean_of_one():
    query, keys = torch.randn(3, 8), torch.randn(20, 8)
    logits = query @ keys.T / 8**0.5
    for k in (1, 4, 20):
        selection = get_selector("attention").select(query, keys, k)
        torch.testing.assert_close(selection.weights.mean(dim=-1), torch.ones(3))
        selected = logits.softmax(dim=-1).gather(1, selection.indices)
        torch.testing.assert_close(selection.scores, selected)
        torch.testing.assert_close(selection.weights, selected / selected.sum(dim=-1, keepdim=True) * k)


def test_only_selectors_with_weights_propagate_the_loss_to_the_keys():
    for name in BUILT_IN:
        keys = torch.randn(6, 4, requires_grad=True)
        selection = get_selector(name).select(torch.randn(1, 4), keys, 3)
        if not get_selector(name).keys_receive_gradient:
            assert selection.weights is None
            continue
        (selection.weights * torch.tensor([[1.0, 2.0, 3.0]])).sum().backward()
        selected = torch.zeros(6, dtype=torch.bool).index_fill(0, selection.indices[0], True)
        assert (keys.grad[selected].abs().sum(dim=-1) > 0).all()
        assert torch.equal(keys.grad[~selected], torch.zeros(3, 4))


def test_a_higher_temperature_makes_the_weights_more_uniform():
    query, keys = torch.randn(1, 8) * 5, torch.randn(6, 8)
    sharp, even = (get_selector("attention", temperature=t).select(query, keys, 6) for t in (0.5, 50.0))
    assert torch.equal(sharp.indices, even.indices)
    assert even.weights.std() < sharp.weights.std()
    with pytest.raises(ValueError, match=r"`temperature` must be above 0, got 0"):
        get_selector("attention", temperature=0)


def _matching_pursuit(query, keys, k):
    """One row, with explicit projections."""
    unit_keys, residual = keys / keys.norm(dim=-1, keepdim=True), query / query.norm()
    selected, scores = [], []
    for _ in range(k):
        cosines = unit_keys @ residual / residual.norm().clamp_min(1e-12)
        cosines[selected] = -torch.inf
        best = int(cosines.argmax())
        selected.append(best)
        scores.append(float(cosines[best]))
        residual = residual - (residual @ unit_keys[best]) * unit_keys[best]
    return selected, scores


@given(seed=st.integers(0, 2**16), pool_size=st.integers(2, 16), k=st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_residual_equals_matching_pursuit_row_by_row(seed, pool_size, k):
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(3, 24, generator=generator, dtype=torch.float64)
    keys = torch.randn(pool_size, 24, generator=generator, dtype=torch.float64)
    k = min(k, pool_size)
    selection = get_selector("residual").select(query, keys, k)
    for row, indices, scores in zip(query, selection.indices.tolist(), selection.scores, strict=True):
        expected, expected_scores = _matching_pursuit(row, keys, k)
        assert indices == expected
        torch.testing.assert_close(scores, torch.tensor(expected_scores, dtype=torch.float64), atol=1e-6, rtol=1e-6)


def test_residual_starts_like_similarity_and_skips_redundant_keys():
    keys = torch.tensor([[1.0, 0.0, 0.0], [0.99, 0.1, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, -1.0]])
    query = torch.tensor([[1.0, 0.4, 0.0]])
    assert get_selector("similarity").select(query, keys, 3).indices.tolist() == [[1, 0, 2]]
    assert get_selector("residual").select(query, keys, 2).indices.tolist() == [[1, 2]]


def test_an_opposite_key_does_not_match():
    keys = torch.tensor([[-1.0, 0.0], [0.1, 1.0]])
    for name in BUILT_IN:
        assert get_selector(name).select(torch.tensor([[1.0, 0.0]]), keys, 1).indices.tolist() == [[1]]


def test_the_built_in_selectors_are_registered():
    assert set(BUILT_IN) <= set(available_selectors())


def test_a_registered_selector_is_found_and_replaces_only_itself(registry):
    @register_selector("first")
    class First(Selector):
        def __init__(self, descending=False):
            self.descending = descending

        def select(self, query, keys, k):
            indices = torch.arange(len(keys)).flip(0) if self.descending else torch.arange(len(keys))
            return Selection(indices=indices[:k].expand(len(query), -1), scores=torch.zeros(len(query), k))

    assert "first" in available_selectors()
    selector = get_selector("first", descending=True)
    assert selector.select(torch.zeros(1, 2), torch.zeros(3, 2), 2).indices.tolist() == [[2, 1]]
    register_selector("first")(First)  # a notebook cell run again
    with pytest.raises(ValueError, match=r"name 'first' is taken by .*First; use another name for Selector"):
        register_selector("first")(Selector)
    with pytest.raises(ValueError, match=r"'first' does not take `selector_kwargs`={'up': 1}"):
        get_selector("first", up=1)


def test_a_class_that_is_not_a_selector_raises(registry):
    with pytest.raises(TypeError, match=r"must be a subclass of `Selector`, got <class 'int'>"):
        register_selector("integer")(int)
    with pytest.raises(ValueError, match=r"no selector 'nearest'; registered are .*residual, similarity"):
        get_selector("nearest")


def first(query, k):
    return torch.arange(k, device=query.device).expand(len(query), -1)


WRONG = {
    "a tuple": (lambda q, k: torch.topk(q, k), TypeError, "a `Selection`, got topk"),
    "a tensor": (lambda q, k: first(q, k), TypeError, "a `Selection`, got .*Tensor"),
    "lists": (lambda q, k: Selection([[0] * k] * len(q), torch.zeros(len(q), k)), TypeError, "`indices`.* got list"),
    "float indices": (
        lambda q, k: Selection(first(q, k).float(), torch.zeros(len(q), k)),
        ValueError,
        "torch.float32",
    ),
    "int32 indices": (lambda q, k: Selection(first(q, k).int(), torch.zeros(len(q), k)), ValueError, "torch.int32"),
    "bool indices": (lambda q, k: Selection(first(q, k).bool(), torch.zeros(len(q), k)), ValueError, "torch.bool"),
    "too many": (
        lambda q, k: Selection(first(q, k + 1), torch.zeros(len(q), k + 1)),
        ValueError,
        r"`indices`.*\(2, 5\)",
    ),
    "too few": (
        lambda q, k: Selection(first(q, k - 1), torch.zeros(len(q), k - 1)),
        ValueError,
        r"`indices`.*\(2, 3\)",
    ),
    "one row": (lambda q, k: Selection(first(q[:1], k), torch.zeros(1, k)), ValueError, r"`indices`.*\(1, 4\)"),
    "no rows": (lambda q, k: Selection(torch.arange(k), torch.zeros(k)), ValueError, r"`indices`.*\(4,\)"),
    "scores": (lambda q, k: Selection(first(q, k), torch.zeros(len(q), 12)), ValueError, r"`scores`.*\(2, 12\)"),
    "integer scores": (lambda q, k: Selection(first(q, k), first(q, k)), ValueError, "`scores`.*torch.int64"),
    "weights": (
        lambda q, k: Selection(first(q, k), torch.zeros(len(q), k), torch.ones(len(q), 1)),
        ValueError,
        r"`weights`.*\(2, 1\)",
    ),
    "above the pool": (
        lambda q, k: Selection(first(q, k) + 9, torch.zeros(len(q), k)),
        ValueError,
        "`indices` from 0 to 11, got 9 to 12",
    ),
    "negative": (
        lambda q, k: Selection(first(q, k) - 1, torch.zeros(len(q), k)),
        ValueError,
        "`indices` from 0 to 11, got -1 to 2",
    ),
    "another device": (
        lambda q, k: Selection(first(q, k).to("meta"), torch.zeros(len(q), k)),
        ValueError,
        f"`indices` on the device of the keys, {test_device()}, got meta",
    ),
}
ON_THE_CPU = pytest.mark.cpu_only(
    "elsewhere the range is not checked, because reading the indices waits for the device"
)
MARKS = {"above the pool": ON_THE_CPU, "negative": ON_THE_CPU}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in WRONG])
def test_a_wrong_selection_raises_with_the_name_of_the_selector(name, training, registry, build, attach, tokens):
    output, error, message = WRONG[name]

    @register_selector("wrong")
    class WrongSelector(Selector):
        def select(self, query, keys, k):
            return output(query, k)

    model = attach(build(), selector="wrong", stochastic_prompt_length=False).train(training)
    labels = {"labels": tokens()} if training else {}
    with pytest.raises(error, match=rf"`WrongSelector\.select` must return .*{message}"):
        model(input_ids=tokens(), **labels)


@pytest.mark.parametrize("output", [torch.zeros(1, 32), torch.zeros(12), torch.full((12, 32), torch.nan), [[0.0]]])
def test_wrong_initial_keys_raise_with_the_name_of_the_selector(output, registry, build, attach):
    @register_selector("wrong")
    class WrongSelector(Selector):
        def select(self, query, keys, k):
            return Selection(first(query, k), torch.zeros(len(query), k))

        def initial_keys(self, queries, pool_size, seed):
            return output

    model = attach(build(), selector="wrong", key_loss_weight=0.1)
    before = model.base_model.layer.pool_of().keys.detach().clone()
    with pytest.raises(ValueError, match=r"`WrongSelector\.initial_keys` must return .*shape \(12, 32\)"):
        model.init_keys_from(torch.randn(20, 32))
    assert torch.equal(model.base_model.layer.pool_of().keys, before)
