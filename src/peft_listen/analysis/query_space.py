"""Whether tasks can be told apart by their queries, as the keys see them: by the cosine, which selection goes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F


MISSING_SCIKIT_LEARN = 'The scores and maps of queries need scikit-learn: pip install "peft-listen[analysis]"'

Projection = Literal["pca", "umap"]


def silhouette(queries: torch.Tensor, tasks: Sequence[str], max_rows: int = 5000, seed: int = 0) -> float | None:
    """
    Mean silhouette coefficient of the queries with their tasks as clusters, by cosine distance (Rousseeuw, 1987).

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`)
        tasks (`Sequence[str]` of length `num_rows`): each row's task.
        max_rows (`int`, defaults to 5000): of more rows, as many are drawn: the cost grows with their square.
        seed (`int`, defaults to 0): seed of that draw.

    Returns:
        `float` from -1 to 1: near 1 when every query is closest to its own task's, 0 when tasks lie over each other.
        `None` where it is undefined: with a single task, or as many tasks as rows.

    Raises:
        ValueError: if the two differ in length.
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ImportError(MISSING_SCIKIT_LEARN) from error
    _check_lengths(queries, tasks)
    chosen = np.sort(np.random.default_rng(seed).permutation(len(tasks))[:max_rows])
    labels = np.asarray(tasks)[chosen]
    if not 2 <= len(set(labels)) < len(labels):
        return None
    return float(silhouette_score(unit_rows(queries)[chosen], labels, metric="cosine"))


def neighbor_accuracy(queries: torch.Tensor, tasks: Sequence[str], num_neighbors: int = 5) -> float | None:
    """
    How often the majority of a query's nearest neighbours, by cosine and without itself, has the query's task.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`)
        tasks (`Sequence[str]` of length `num_rows`): each row's task.
        num_neighbors (`int`, defaults to 5): neighbours that vote; fewer if there are fewer other rows.

    Returns:
        `float` from 0 to 1, to be held against [`majority_share`]; `None` for a single row.

    Raises:
        ValueError: if the two differ in length, or for fewer than one neighbour.
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError as error:
        raise ImportError(MISSING_SCIKIT_LEARN) from error
    _check_lengths(queries, tasks)
    if num_neighbors < 1:
        raise ValueError(f"`num_neighbors` must be at least 1, got {num_neighbors}.")
    if len(tasks) < 2:
        return None
    search = NearestNeighbors(n_neighbors=min(num_neighbors, len(tasks) - 1), metric="cosine")
    # Without an argument, a point is no neighbour of itself.
    neighbors = search.fit(unit_rows(queries)).kneighbors(return_distance=False)
    # Of tasks with equally many votes, the one of the nearest neighbour wins: a Counter keeps the order of arrival.
    votes = [Counter(tasks[index] for index in row).most_common(1)[0][0] for row in neighbors]
    return sum(vote == task for vote, task in zip(votes, tasks, strict=True)) / len(tasks)


def majority_share(tasks: Sequence[str]) -> float:
    """Share of the rows that belong to the most frequent task: what guessing it every time would get right."""
    return Counter(tasks).most_common(1)[0][1] / len(tasks)


def project(
    queries: torch.Tensor, keys: torch.Tensor, projection: Projection = "pca", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Queries and keys, all at length 1, in a plane.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`)
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`)
        projection (`"pca"` or `"umap"`, defaults to `"pca"`):
            `"pca"`: the two directions in which the queries vary most; distances are true to the two. `"umap"`:
            neighbourhoods of queries and keys together; distances between clusters mean nothing. Needs `umap-learn`.
        seed (`int`, defaults to 0): seed of UMAP.

    Returns:
        `tuple[np.ndarray, np.ndarray]` of shapes `(num_rows, 2)` and `(pool_size, 2)`, float32.

    Raises:
        ValueError: for another projection.
        ImportError: if scikit-learn or umap-learn is not installed.
    """
    points, key_points = unit_rows(queries), unit_rows(keys)
    if projection == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError("The projection 'umap' needs umap-learn: pip install umap-learn") from error
        both = np.concatenate([points, key_points])
        # One job: with a seed UMAP takes no more, and warns.
        reducer = UMAP(metric="cosine", n_neighbors=min(15, len(both) - 1), random_state=seed, n_jobs=1)
        plane = reducer.fit_transform(both).astype(np.float32)
        return plane[: len(points)], plane[len(points) :]
    if projection != "pca":
        raise ValueError(f"`projection` must be 'pca' or 'umap', got {projection!r}.")
    try:
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise ImportError(MISSING_SCIKIT_LEARN) from error
    # A single query has no directions of its own.
    fitted = points if len(points) > 1 else np.concatenate([points, key_points])
    pca = PCA(n_components=min(2, *fitted.shape), svd_solver="full").fit(fitted)
    return tuple(_two_columns(pca.transform(rows)) for rows in (points, key_points))  # type: ignore[return-value]


def unit_rows(vectors: torch.Tensor) -> np.ndarray:
    """Rows of length 1, float32; a row of zeros stays one."""
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()


def _two_columns(points: np.ndarray) -> np.ndarray:
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1]))).astype(np.float32)


def _check_lengths(queries: torch.Tensor, tasks: Sequence[str]) -> None:
    if len(queries) != len(tasks):
        raise ValueError(f"There are {len(queries)} queries, but {len(tasks)} tasks; give one of each a row.")
