"""Whether two methods differ: a sign-flip test over seeds, and a bootstrap over seeds and clips.

Both compare runs of the same seeds, which have seen the same batches and started from the same projector.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.stats import permutation_test


DRAWS = 10_000
LEVEL = 0.95
# The smallest number of seeds with which the sign-flip test can be below 1 - LEVEL: its smallest p-value is 2 / 2^6.
ENOUGH_SEEDS = 6


def sign_flip_p_value(differences: Sequence[float]) -> float:
    """
    Two-sided p-value of the exact sign-flip test: how often a mean at least as far from zero arises if the sign of each
    difference is as likely positive as negative.

    Args:
        differences (`Sequence[float]`): one difference per seed.

    Returns:
        `float`: at least `2 / 2 ** len(differences)`; 1 for fewer than two differences.
    """
    if len(differences) < 2:
        return 1.0
    result = permutation_test(
        (np.asarray(differences, dtype=float),),
        np.mean,
        vectorized=False,
        permutation_type="samples",
        n_resamples=np.inf,
    )
    return float(result.pvalue)


class MeanScore(Protocol):
    """The mean over tasks of scores, by seed."""

    def __call__(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """`{task: scores of shape (..., num_seeds)}` to the mean over the tasks, of the same shape."""


@dataclass(frozen=True)
class Interval:
    """
    A mean difference and its bootstrap interval.

    Attributes:
        mean (`float`): the difference over all seeds and clips.
        low, high (`float`): ends of the 95 % interval.
    """

    mean: float
    low: float
    high: float


def bootstrap_interval(
    ours: Mapping[str, np.ndarray],
    theirs: Mapping[str, np.ndarray],
    mean_score: MeanScore,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """
    Interval of the difference of two methods' mean scores, for other seeds and other test clips.

    Each draw takes as many seeds as there are with replacement, and for each task as many clips. Both methods get the same
    seeds and clips, and all seeds the same clips.

    Args:
        ours, theirs (`Mapping[str, np.ndarray]`): for each task, the scores of its clips, of shape `(num_seeds,
            num_clips)`; the same seeds and clips in both.
        mean_score (`Callable`): the mean over the tasks, see [`MeanScore`].
        draws (`int`, defaults to 10000): number of draws.
        seed (`int`, defaults to 0): seed of the draws.

    Returns:
        [`Interval`]

    Raises:
        ValueError: if the scores of the methods have different tasks or shapes.
    """
    shapes = [{task: scores.shape for task, scores in method.items()} for method in (ours, theirs)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"The methods have different tasks, seeds or clips: {shapes[0]} and {shapes[1]}. Compare runs of the same seeds "
            "and test clips."
        )
    rng = np.random.default_rng(seed)
    drawn: tuple[dict[str, np.ndarray], dict[str, np.ndarray]] = ({}, {})
    num_seeds = 0
    for task, scores in ours.items():
        num_seeds, num_clips = scores.shape
        # How often each clip is drawn: the same distribution as that of drawn clips, and faster.
        counts = rng.multinomial(num_clips, [1 / num_clips] * num_clips, size=draws)
        for means, method in zip(drawn, (ours, theirs), strict=True):
            means[task] = counts @ method[task].T / num_clips  # [draws, num_seeds]
    seed_counts = rng.multinomial(num_seeds, [1 / num_seeds] * num_seeds, size=draws)
    differences = ((mean_score(drawn[0]) - mean_score(drawn[1])) * seed_counts).sum(axis=-1) / num_seeds
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    whole = [{task: scores.mean(axis=-1) for task, scores in method.items()} for method in (ours, theirs)]
    return Interval(float((mean_score(whole[0]) - mean_score(whole[1])).mean()), float(low), float(high))
