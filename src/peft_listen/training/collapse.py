"""Warnings about collapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


# With fewer rows, the measures are not meaningful.
MIN_ROWS = 8


@dataclass(frozen=True)
class CollapseMetric:
    """
    Measure of one kind of collapse.

    Attributes:
        measure (`str`): name of the measure; see [`~peft_listen.analysis.collapse.collapse_measures`].
        message (`str`): what has happened and what to do about it; `{value}` is replaced by the measure's value.
    """

    measure: str
    message: str


METRICS = (
    CollapseMetric(
        "query_cosine",
        "The queries of different rows have nearly the same direction (mean cosine {value:.3f}), so all inputs select "
        "the same prompts. Set `center_queries=True`, lower the learning rate of the projector, and initialize the keys "
        "from real queries (`init_keys_at_steps`); see the documentation on collapse.",
    ),
    CollapseMetric(
        "key_cosine",
        "The keys have nearly the same direction (mean cosine {value:.3f}), so the selection is nearly arbitrary. Lower "
        "`key_loss_weight`, or initialize the keys from real queries (`init_keys_at_steps`).",
    ),
    CollapseMetric(
        "top_prompt_share",
        "A fraction of {value:.3f} of the rows has the same best prompt, so the pool works like one plain soft "
        "prompt. Initialize the keys from real queries (`init_keys_at_steps`), or use the grouped selector with added "
        "shared prompts. For a single task with similar inputs, this may be intended.",
    ),
)


def collapse_warnings(measures: Mapping[str, float], threshold: float) -> dict[str, str]:
    """The messages of the measures that are above `threshold`, by the measure's name."""
    return {
        metric.measure: metric.message.format(value=measures[metric.measure])
        for metric in METRICS
        if measures[metric.measure] > threshold
    }
