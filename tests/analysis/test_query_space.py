"""Scores of the query space, held to values by hand, and its maps."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_listen.analysis import neighbor_accuracy, project, silhouette
from peft_listen.analysis.query_space import majority_share


def directions(*degrees: float) -> torch.Tensor:
    angles = torch.deg2rad(torch.tensor(degrees))
    return torch.stack([angles.cos(), angles.sin()], dim=-1)


def test_the_silhouette_is_that_of_the_cosine_distance() -> None:
    # At 0 and 60 degrees, and twice at 180: distances 1/2 within the first task, 2 and 3/2 to the other.
    queries = directions(0, 60, 180, 180)
    expected = np.mean([(2 - 0.5) / 2, (1.5 - 0.5) / 1.5, 1, 1])
    assert silhouette(queries, ["a", "a", "b", "b"]) == pytest.approx(expected, abs=1e-6)


def test_the_silhouette_is_undefined_for_one_task_and_for_tasks_of_one_row() -> None:
    assert silhouette(directions(0, 10, 20), ["a"] * 3) is None
    assert silhouette(directions(0, 10, 20), ["a", "b", "c"]) is None


def test_of_many_rows_a_repeatable_sample_is_taken() -> None:
    queries, tasks = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), ["a", "b"] * 30
    sample = silhouette(queries, tasks, max_rows=20, seed=3)
    assert sample == silhouette(queries, tasks, max_rows=20, seed=3)
    assert sample != silhouette(queries, tasks)


def test_neighbours_vote_without_the_query_itself() -> None:
    queries = directions(0, 5, 90, 95)
    assert neighbor_accuracy(queries, ["a", "a", "b", "b"], num_neighbors=1) == 1.0
    # Each query's double has the other task.
    assert neighbor_accuracy(directions(0, 0, 90, 90), ["a", "b", "b", "a"], num_neighbors=1) == 0.0
    # Of all three others, two have the other task.
    assert neighbor_accuracy(queries, ["a", "a", "b", "b"], num_neighbors=5) == 0.0


def test_where_votes_are_equal_the_nearest_neighbour_decides() -> None:
    # The queries at 0 and 5 degrees have each other before "b" at 12, which has "a" twice.
    assert neighbor_accuracy(directions(0, 5, 12), ["a", "a", "b"], num_neighbors=2) == pytest.approx(2 / 3)


def test_a_single_row_has_no_neighbour() -> None:
    assert neighbor_accuracy(directions(0), ["a"]) is None


def test_wrong_arguments_are_refused() -> None:
    for score in (silhouette, neighbor_accuracy):
        with pytest.raises(ValueError, match="2 queries, but 1 tasks"):
            score(directions(0, 1), ["a"])
    with pytest.raises(ValueError, match="`num_neighbors` must be at least 1, got 0"):
        neighbor_accuracy(directions(0, 1), ["a", "b"], num_neighbors=0)
    with pytest.raises(ValueError, match="`projection` must be 'pca' or 'umap', got 'tsne'"):
        project(directions(0, 1), directions(0), "tsne")


def test_guessing_gets_the_share_of_the_largest_task() -> None:
    assert majority_share(["a", "b", "a", "c"]) == 0.5


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.floats(0.01, 100))
def test_lengths_of_queries_do_not_count(seed, scale) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, tasks = torch.randn(12, 5, generator=generator), ["a", "b", "c"] * 4
    lengths = scale * (0.5 + torch.rand(12, 1, generator=generator))
    assert silhouette(queries * lengths, tasks) == pytest.approx(silhouette(queries, tasks), abs=1e-4)
    assert neighbor_accuracy(queries * lengths, tasks) == neighbor_accuracy(queries, tasks)


def test_pca_keeps_distances_in_the_plane_where_the_queries_lie() -> None:
    queries = torch.nn.functional.pad(directions(0, 40, 100, 200), (0, 3))
    points, keys = project(queries, 7 * queries[:2])
    assert points.shape == (4, 2) and keys.shape == (2, 2)
    np.testing.assert_allclose(keys, points[:2], atol=1e-6)  # at length 1 they are the same points
    expected = torch.cdist(queries, queries).numpy()
    np.testing.assert_allclose(np.linalg.norm(points[:, None] - points[None], axis=-1), expected, atol=1e-5)


def test_a_single_query_has_a_place_too() -> None:
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
def test_a_missing_library_is_answered_with_what_to_install(absent, call, message, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ImportError, match=message):
        call(directions(0, 90))


@pytest.mark.slow
def test_umap_lays_the_keys_beside_the_queries_that_they_are_like(make_records) -> None:
    pytest.importorskip("umap")
    records = make_records()
    points, keys = project(records.queries, records.keys, "umap", seed=1)
    distances = np.linalg.norm(points[:, None] - keys[None], axis=-1)
    nearest = distances.argmin(axis=1) % 3  # the keys were laid around the tasks in turn
    tasks = np.repeat([0, 1, 2], 12)
    assert (nearest == tasks).mean() > 0.9
    np.testing.assert_allclose(project(records.queries, records.keys, "umap", seed=1)[0], points)
