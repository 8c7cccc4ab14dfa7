"""Measures of collapse, for the log of a training and for the report of a dataset."""

from __future__ import annotations

import torch

from .query_space import mean_pairwise_cosine


@torch.no_grad()
def collapse_measures(queries: torch.Tensor, keys: torch.Tensor, indices: torch.Tensor) -> dict[str, float]:
    """
    Computes the measures of collapse; each is 1 under full collapse. The selections must come from one state of the model,
    in evaluation mode: dropout and the steps of a projector that is being trained would make equal inputs look different.

    Args:
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`): after centering and scaling.
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): keys of the pool.
        indices (`torch.LongTensor` of shape `(num_rows, k)`): selected prompts of each row, best first.

    Returns:
        `dict[str, float]`: `query_cosine` and `key_cosine`, the mean cosines between different queries and between
        different keys, and `top_prompt_share`, the share of rows whose best prompt is the most frequent one; 0.0 without
        rows.
    """
    best = indices[:, 0]
    return {
        "query_cosine": mean_pairwise_cosine(queries),
        "key_cosine": mean_pairwise_cosine(keys),
        "top_prompt_share": int(best.bincount().max()) / len(best) if len(best) else 0.0,
    }
