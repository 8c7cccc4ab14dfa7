"""Warnings about collapse."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..analysis.advice import RemedyName, advise


# With fewer rows, the measures are not meaningful.
MIN_ROWS = 8


@dataclass(frozen=True)
class CollapseMetric:
    """
    Measure of one kind of collapse.

    Attributes:
        measure (`str`): name of the measure; see [`~peft_listen.analysis.collapse.collapse_measures`].
        message (`str`): what has happened; `{value}` is replaced by the measure's value.
        remedies (`tuple[str, ...]`): names of what to do about it, the most important first.
    """

    measure: str
    message: str
    remedies: tuple[RemedyName, ...]


METRICS = (
    CollapseMetric(
        "query_cosine",
        "The queries of different rows have nearly the same direction (mean cosine {value:.3f}), so all inputs select "
        "the same prompts.",
        ("center_queries", "slower_projector", "init_keys_at_steps"),
    ),
    CollapseMetric(
        "key_cosine",
        "The keys have nearly the same direction (mean cosine {value:.3f}), so the selection is nearly arbitrary.",
        ("smaller_key_loss", "init_keys_at_steps"),
    ),
    CollapseMetric(
        "top_prompt_share",
        "A fraction of {value:.3f} of the rows has the same best prompt, so the pool works like one plain soft "
        "prompt. For a single task with similar inputs, this may be intended.",
        ("init_keys_at_steps", "grouped", "shared_prompts"),
    ),
)


def collapse_warnings(measures: Mapping[str, float], threshold: float, config: Mapping[str, Any]) -> dict[str, str]:
    """
    The messages of the measures that are above a threshold, with advice that the configuration does not follow already.

    Args:
        measures (`Mapping[str, float]`): values by the name of the measure.
        threshold (`float`): threshold, from 0 to 1.
        config (`Mapping[str, Any]`): fields of the adapter's configuration.

    Returns:
        `dict[str, str]`: messages by the name of the measure.
    """
    warnings = {}
    for metric in METRICS:
        if measures[metric.measure] > threshold:
            advice = advise(config, *metric.remedies) or ""
            text = f"{metric.message.format(value=measures[metric.measure])} {advice[:1].upper()}{advice[1:]}."
            warnings[metric.measure] = f"{text} See the documentation on collapse, docs/method.md."
    return warnings
