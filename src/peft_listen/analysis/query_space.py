"""How well queries separate the tasks, measured by cosine similarity, which the selectors use too."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F


MISSING_SCIKIT_LEARN = 'Scores and maps of queries need scikit-learn: pip install "peft-listen[analysis]"'

Projection = Literal["pca", "umap"]


def mean_pairwise_cosine(vectors: torch.Tensor) -> float:
    """
    Mean cosine similarity between different rows; near 1 if all rows have almost the same direction.

    Args:
        vectors (`torch.FloatTensor` of shape `(num_vectors, size)`): rows to compare.

    Returns:
        `float` from -1 to 1; 0.0 for fewer than two rows.
    """
    count = len(vectors)
    if count < 2:
        return 0.0
    total = F.normalize(vectors.float(), dim=-1).sum(dim=0)
    return (float(total.square().sum()) - count) / (count * (count - 1))


def silhouette(queries: torch.Tensor, tasks: Sequence[str], max_rows: int = 5000, seed: int = 0) -> float | None:
    """
    Mean silhouette coefficient of the queries in cosine distance, with the tasks as clusters (Rousseeuw, 1987).

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`): query of each row.
        tasks (`Sequence[str]` of length `num_rows`): task of each row.
        max_rows (`int`, defaults to 5000): number of rows that are sampled if there are more; the cost grows with its
            square.
        seed (`int`, defaults to 0): seed of the sample.

    Returns:
        `float` from -1 to 1: near 1 if every query is closest to the queries of its own task, 0 if the tasks overlap.
        `None` if it is undefined: for a single task, or if no two rows have the same task.

    Raises:
        ValueError: if the two differ in length.
        ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn.metrics import silhouette_score
    except ImportError as error:
        raise ImportError(MISSING_SCIKIT_LEARN) from error
    _check_lengths(queries, tasks)
    sample = np.sort(np.random.default_rng(seed).permutation(len(tasks))[:max_rows])
    labels = np.asarray(tasks)[sample]
    if not 2 <= len(set(labels)) < len(labels):
        return None
    return float(silhouette_score(unit_rows(queries)[sample], labels, metric="cosine"))


def neighbor_accuracy(queries: torch.Tensor, tasks: Sequence[str], num_neighbors: int = 5) -> float | None:
    """
    Accuracy of a k-nearest-neighbor classifier that predicts each query's task from the other queries, in cosine
    distance.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`): query of each row.
        tasks (`Sequence[str]` of length `num_rows`): task of each row.
        num_neighbors (`int`, defaults to 5): number of neighbors, k; fewer if there are fewer other rows.

    Returns:
        `float` from 0 to 1, to be compared with [`majority_share`]; `None` for a single row.

    Raises:
        ValueError: if the two differ in length, or `num_neighbors` is below 1.
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
    # Without an argument, `kneighbors` does not count a point as its own neighbor.
    neighbors = search.fit(unit_rows(queries)).kneighbors(return_distance=False)
    # Ties go to the task of the nearest neighbor, because a Counter keeps the order of insertion.
    votes = [Counter(tasks[index] for index in row).most_common(1)[0][0] for row in neighbors]
    return sum(vote == task for vote, task in zip(votes, tasks, strict=True)) / len(tasks)


def majority_share(tasks: Sequence[str]) -> float:
    """Fraction of rows that belong to the most frequent task: the accuracy of always predicting this task."""
    return Counter(tasks).most_common(1)[0][1] / len(tasks)


def project(
    queries: torch.Tensor, keys: torch.Tensor, projection: Projection = "pca", seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """
    Projects queries and keys, normalized to length 1, to two dimensions.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`): query of each row.
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): keys of the pool.
        projection (`"pca"` or `"umap"`, defaults to `"pca"`):
            `"pca"` keeps the two directions in which the queries vary most. `"umap"` keeps neighborhoods of queries and
            keys; distances between clusters are not meaningful. It needs `umap-learn`.
        seed (`int`, defaults to 0): seed of UMAP.

    Returns:
        `tuple[np.ndarray, np.ndarray]` of shapes `(num_rows, 2)` and `(pool_size, 2)`, float32.

    Raises:
        ValueError: if `projection` is neither of these.
        ImportError: if scikit-learn or umap-learn is not installed.
    """
    points, key_points = unit_rows(queries), unit_rows(keys)
    if projection == "umap":
        try:
            from umap import UMAP
        except ImportError as error:
            raise ImportError("The projection 'umap' needs umap-learn: pip install umap-learn") from error
        both = np.concatenate([points, key_points])
        # With a seed UMAP runs a single job and warns if more are requested.
        reducer = UMAP(metric="cosine", n_neighbors=min(15, len(both) - 1), random_state=seed, n_jobs=1)
        plane = reducer.fit_transform(both).astype(np.float32)
        return plane[: len(points)], plane[len(points) :]
    if projection != "pca":
        raise ValueError(f"`projection` must be 'pca' or 'umap', got {projection!r}.")
    try:
        from sklearn.decomposition import PCA
    except ImportError as error:
        raise ImportError(MISSING_SCIKIT_LEARN) from error
    # A single query has no variance, so the keys are included in the fit.
    fitted = points if len(points) > 1 else np.concatenate([points, key_points])
    pca = PCA(n_components=min(2, *fitted.shape), svd_solver="full").fit(fitted)
    return tuple(_two_columns(pca.transform(rows)) for rows in (points, key_points))  # type: ignore[return-value]


def unit_rows(vectors: torch.Tensor) -> np.ndarray:
    """Normalizes the rows to length 1, as float32; a row of zeros is unchanged."""
    return F.normalize(vectors.float(), dim=-1).cpu().numpy()


def _two_columns(points: np.ndarray) -> np.ndarray:
    return np.pad(points, ((0, 0), (0, 2 - points.shape[1]))).astype(np.float32)


def _check_lengths(queries: torch.Tensor, tasks: Sequence[str]) -> None:
    if len(queries) != len(tasks):
        raise ValueError(f"There are {len(queries)} queries, but {len(tasks)} tasks; pass one of each per row.")
