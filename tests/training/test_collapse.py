"""Collapse metrics: each is 1 under full collapse and low otherwise."""

import pytest
import torch

from peft_listen.analysis.collapse import collapse_measures
from peft_listen.training.collapse import METRICS, collapse_warnings


GENERATOR = torch.Generator().manual_seed(0)
DIFFERENT = torch.randn(64, 32, generator=GENERATOR)
ALIKE = torch.ones(64, 32) + 0.01 * DIFFERENT


@pytest.mark.parametrize("collapsed", ["query_cosine", "key_cosine", "top_prompt_share", None])
def test_each_metric_detects_one_kind_of_collapse(collapsed):
    measures = collapse_measures(
        ALIKE if collapsed == "query_cosine" else DIFFERENT,
        ALIKE if collapsed == "key_cosine" else DIFFERENT,
        (torch.full((64,), 7) if collapsed == "top_prompt_share" else torch.arange(64) % 16)[:, None],
    )
    assert set(measures) == {metric.measure for metric in METRICS}
    for measure, value in measures.items():
        assert value > 0.99 if measure == collapsed else value < 0.1
    warnings = collapse_warnings(measures, threshold=0.95, config={"center_queries": True})
    assert list(warnings) == ([] if collapsed is None else [collapsed])
    if collapsed:
        assert f"{measures[collapsed]:.3f}" in warnings[collapsed]


def test_the_share_is_zero_without_rows():
    assert collapse_measures(DIFFERENT, DIFFERENT, torch.empty(0, 1, dtype=torch.long))["top_prompt_share"] == 0.0


def test_the_advice_leaves_out_what_is_set_already():
    measures = dict.fromkeys((metric.measure for metric in METRICS), 1.0)
    unset = collapse_warnings(measures, 0.95, {"center_queries": False, "modules_to_save": ["multi_modal_projector"]})
    assert "Set center_queries=True, lower the learning rate of the projector" in unset["query_cosine"]
    config = {"center_queries": True, "selector": "grouped", "num_shared_prompts": 8, "key_loss_weight": 0.0}
    messages = collapse_warnings(measures, 0.95, config)
    for unwanted in ("center_queries", "projector", "grouped", "shared prompts", "key_loss_weight"):
        assert not any(unwanted in message for message in messages.values())
    assert all("init_keys_at_steps" in message for message in messages.values())
