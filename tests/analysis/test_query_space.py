"""Scores of the query space, compared with values by hand, and its projections."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.analysis import mean_pairwise_cosine, neighbor_accuracy, silhouette
from peft_listen.analysis.query_space import majority_share, project


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def test_the_mean_cosine_is_over_all_pairs() -> None:
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [0.0, 2.0]])) == pytest.approx(0.0, abs=1e-6)
    assert mean_pairwise_cosine(torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0]])) == pytest.approx(-1 / 3)
    assert mean_pairwise_cosine(torch.ones(4, 3)) == pytest.approx(1.0)
    assert mean_pairwise_cosine(torch.ones(1, 3)) == 0.0


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 12), st.integers(1, 6), st.integers(0, 1000))
def test_the_mean_cosine_equals_the_explicit_mean(count, size, seed) -> None:
    vectors = torch.randn(count, size, generator=torch.Generator().manual_seed(seed))
    cosines = torch.nn.functional.cosine_similarity(vectors[:, None], vectors[None], dim=-1)
    expected = (cosines.sum() - cosines.diagonal().sum()) / (count * (count - 1))
    assert mean_pairwise_cosine(vectors) == pytest.approx(float(expected), abs=1e-5)


def test_the_silhouette_uses_the_cosine_distance() -> None:
    # At 0, 60, 180 and 180 degrees: the distance is 1/2 within the first task, and 2 and 3/2 to the other.
    queries = directions(0, 60, 180, 180)
    expected = np.mean([(2 - 0.5) / 2, (1.5 - 0.5) / 1.5, 1, 1])
    assert silhouette(queries, ["a", "a", "b", "b"]) == pytest.approx(expected, abs=1e-6)


def test_the_silhouette_is_undefined_for_one_task_and_for_one_row_per_task() -> None:
    assert silhouette(directions(0, 10, 20), ["a"] * 3) is None
    assert silhouette(directions(0, 10, 20), ["a", "b", "c"]) is None


def test_many_rows_are_sampled_reproducibly() -> None:
    queries, tasks = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), ["a", "b"] * 30
    sample = silhouette(queries, tasks, max_rows=20, seed=3)
    assert sample == silhouette(queries, tasks, max_rows=20, seed=3)
    assert sample != silhouette(queries, tasks)


def test_neighbors_vote_without_the_query_itself() -> None:
    queries = directions(0, 5, 90, 95)
    assert neighbor_accuracy(queries, ["a", "a", "b", "b"], num_neighbors=1) == 1.0
    # The nearest neighbor of each query is a duplicate with the other task.
    assert neighbor_accuracy(directions(0, 0, 90, 90), ["a", "b", "b", "a"], num_neighbors=1) == 0.0
    # Two of the three other queries have the other task.
    assert neighbor_accuracy(queries, ["a", "a", "b", "b"], num_neighbors=5) == 0.0


def test_ties_go_to_the_nearest_neighbor() -> None:
    # The queries at 0 and 5 degrees are closer to each other than to "b" at 12, whose neighbors are both "a".
    assert neighbor_accuracy(directions(0, 5, 12), ["a", "a", "b"], num_neighbors=2) == pytest.approx(2 / 3)


def test_a_single_row_has_no_neighbor() -> None:
    assert neighbor_accuracy(directions(0), ["a"]) is None


def test_invalid_arguments_raise() -> None:
    for score in (silhouette, neighbor_accuracy):
        with pytest.raises(ValueError, match="2 queries, but 1 tasks"):
            score(directions(0, 1), ["a"])
    with pytest.raises(ValueError, match="`num_neighbors` must be at least 1, got 0"):
        neighbor_accuracy(directions(0, 1), ["a", "b"], num_neighbors=0)
    with pytest.raises(ValueError, match="`projection` must be 'pca' or 'umap', got 'tsne'"):
        project(directions(0, 1), directions(0), "tsne")


def test_majority_share_is_that_of_the_largest_task() -> None:
    assert majority_share(["a", "b", "a", "c"]) == 0.5


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_the_length_of_queries_has_no_effect(seed, scale) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, tasks = torch.randn(12, 5, generator=generator), ["a", "b", "c"] * 4
    lengths = scale * (0.5 + torch.rand(12, 1, generator=generator))
    assert silhouette(queries * lengths, tasks) == pytest.approx(silhouette(queries, tasks), abs=1e-4)
    assert neighbor_accuracy(queries * lengths, tasks) == neighbor_accuracy(queries, tasks)


def test_pca_keeps_distances_of_queries_in_a_plane() -> None:
    queries = torch.nn.functional.pad(directions(0, 40, 100, 200), (0, 3))
    points, keys = project(queries, 7 * queries[:2])
    assert points.shape == (4, 2) and keys.shape == (2, 2)
    np.testing.assert_allclose(keys, points[:2], atol=1e-6)  # equal to the queries after normalization
    expected = torch.cdist(queries, queries).numpy()
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=-1), expected, atol=1e-5)


def test_a_single_query_can_be_projected() -> None:
    points, keys = project(directions(0), directions(90, 180))
    distances = np.linalg.norm(points - keys, axis=-1)
    np.testing.assert_allclose(distances, [2**0.5, 2], atol=1e-5)


@pytest.mark.parametrize(
    ("absent", "call", "message"),
    [
        (
            "sklearn.metrics",
            lambda q: silhouette(q, ["a", "b"]),
            r'scikit-learn: pip install "peft-listen\[analysis\]"',
        ),
        ("sklearn.neighbors", lambda q: neighbor_accuracy(q, ["a", "b"]), r"peft-listen\[analysis\]"),
        ("sklearn.decomposition", lambda q: project(q, q), r"peft-listen\[analysis\]"),
        ("umap", lambda q: project(q, q, "umap"), "needs umap-learn: pip install umap-learn"),
    ],
)
def test_a_missing_library_raises_with_the_install_command(absent, call, message, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=message):
        call(directions(0, 90))


@pytest.mark.slow
def test_umap_places_keys_near_similar_queries(make_records) -> None:
    pytest.importorskip("umap")
    records = make_records()
    points, keys = project(records.queries, records.keys, "umap", seed=1)
    distances = np.linalg.norm(points[:, None] - keys[None], axis=-1)
    nearest = distances.argmin(axis=1) % 3  # the keys were generated around the tasks in turn
    tasks = np.repeat([0, 1, 2], 12)
    assert (nearest == tasks).mean() > 0.9
    np.testing.assert_allclose(project(records.queries, records.keys, "umap", seed=1)[0], points)
