"""Collapse metrics of a selection, and their warnings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..analysis.query_space import mean_pairwise_cosine


# With fewer rows, the metrics are not meaningful.
MIN_ROWS = 16


@dataclass(frozen=True)
class CollapseMetric:
    """
    Metric of one kind of collapse.

    Attributes:
        measure (`str`): name of the metric in the logs.
        message (`str`): what has happened and what to do about it; `{value}` is replaced by the metric's value.
    """

    measure: str
    message: str


METRICS = (
    CollapseMetric(
        "query_cosine",
        "The queries of recent rows have nearly the same direction (mean cosine {value:.3f}), so all inputs select the "
        "same prompts. Set `center_queries=True` and initialize the keys from real queries (`init_keys_at_steps`); see "
        "the documentation on collapse.",
    ),
    CollapseMetric(
        "key_cosine",
        "The keys have nearly the same direction (mean cosine {value:.3f}), so the selection is nearly arbitrary. Lower "
        "`key_loss_weight`, or initialize the keys from real queries (`init_keys_at_steps`).",
    ),
    CollapseMetric(
        "top_prompt_share",
        "A fraction of {value:.3f} of recent rows has the same best prompt, so the pool works like one plain soft "
        "prompt. Initialize the keys from real queries (`init_keys_at_steps`), or use the grouped selector with added "
        "shared prompts. For a single task with similar inputs, this may be intended.",
    ),
)


@torch.no_grad()
def collapse_measures(queries: torch.Tensor, keys: torch.Tensor, best: torch.Tensor) -> dict[str, float]:
    """
    Computes the collapse metrics of recent rows; each is 1 under full collapse.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`): after centering and scaling.
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`)
        best (`torch.LongTensor` of shape `(num_rows,)`): the first prompt of each row.

    Returns:
        `dict[str, float]`: `query_cosine` and `key_cosine`, the mean cosines between different queries and between
        different keys, and `top_prompt_share`, the share of rows whose best prompt is the most frequent one.
    """
    return {
        "query_cosine": round(mean_pairwise_cosine(queries), 4),
        "key_cosine": round(mean_pairwise_cosine(keys), 4),
        "top_prompt_share": round(float(best.bincount().max()) / len(best), 4) if len(best) else 0.0,
    }


def collapse_warnings(measures: Mapping[str, float], threshold: float) -> dict[str, str]:
    """The messages of the metrics that are above `threshold`, by the metric's name."""
    return {
        metric.measure: metric.message.format(value=measures[metric.measure])
        for metric in METRICS
        if measures[metric.measure] > threshold
    }
