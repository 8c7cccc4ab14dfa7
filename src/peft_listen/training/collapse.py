"""The signatures of a selection that has failed, and the alarm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..analysis.query_space import mean_pairwise_cosine


# Fewer rows than this say nothing about collapse.
MIN_ROWS = 16


@dataclass(frozen=True)
class CollapseSignature:
    """
    What one kind of collapse looks like.

    Attributes:
        measure (`str`): name of the measure, as it is logged.
        message (`str`): what has happened and what helps; `{value}` stands for the measure.
    """

    measure: str
    message: str


SIGNATURES = (
    CollapseSignature(
        "query_cosine",
        "The queries of the last rows are nearly one direction (mean cosine {value:.3f}), so that all inputs choose the "
        "same prompts. `center_queries=True` and keys started from real queries (`init_keys_at_steps`) help; see the "
        "documentation on collapse.",
    ),
    CollapseSignature(
        "key_cosine",
        "The keys are nearly one direction (mean cosine {value:.3f}), so that which of them are chosen means little. A "
        "lower `key_loss_weight`, or keys started from real queries (`init_keys_at_steps`), help.",
    ),
    CollapseSignature(
        "top_prompt_share",
        "Of the last rows, a share of {value:.3f} has the same best prompt, so that the pool works as one plain soft "
        "prompt. `usage_balance`, `reseed_every` and keys started from real queries (`init_keys_at_steps`) help. On a "
        "single task of inputs that are all alike this may be as it should.",
    ),
)


@torch.no_grad()
def collapse_measures(queries: torch.Tensor, keys: torch.Tensor, best: torch.Tensor) -> dict[str, float]:
    """
    Measures of how alike the choices of recent rows are; each is 1 in full collapse.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`): as the keys see them.
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
    """The messages of those signatures whose measure is above `threshold`, by the measure's name."""
    return {
        signature.measure: signature.message.format(value=measures[signature.measure])
        for signature in SIGNATURES
        if measures[signature.measure] > threshold
    }
