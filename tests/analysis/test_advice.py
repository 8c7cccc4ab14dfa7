"""Advice depends on the adapter's configuration: nothing is advised that is set already."""

import itertools
import re

import pytest

from peft_listen import ListenConfig
from peft_listen.analysis.advice import REMEDIES, advise
from peft_listen.analysis.findings import rate
from peft_listen.analysis.summary import summarize


# For each remedy that depends on the configuration: settings in which it applies, and those in which it is set.
SETTINGS = {
    "center_queries": ({"center_queries": False}, {"center_queries": True}),
    "standardize_queries": ({"standardize_queries": False}, {"standardize_queries": True}),
    "query_pooling": ({"query_pooling": "mean"}, {"query_pooling": "modality_mean"}),
    "query_ignored_token_ids": ({"query_ignored_token_ids": None}, {"query_ignored_token_ids": [1, 2]}),
    "grouped": ({"selector": "attention"}, {"selector": "grouped", "selector_kwargs": {"num_groups": 10}}),
    "shared_prompts": ({"num_shared_prompts": 0}, {"num_shared_prompts": 20}),
    "fixed_length": ({"stochastic_prompt_length": True}, {"stochastic_prompt_length": False}),
    "projector": ({"modules_to_save": ["multi_modal_projector"]}, {"modules_to_save": None}),
    "slower_projector": ({"modules_to_save": ["multi_modal_projector"]}, {"modules_to_save": None}),
    "smaller_key_loss": ({"key_loss_weight": 0.1}, {"key_loss_weight": 0.0}),
}
ALWAYS = {"init_keys_at_steps", "smaller_pool", "wording", "longer_training"}


def test_every_remedy_is_tested_here() -> None:
    assert SETTINGS.keys() | ALWAYS == REMEDIES.keys()
    assert not SETTINGS.keys() & ALWAYS


@pytest.mark.parametrize("name", SETTINGS)
def test_a_remedy_is_advised_only_where_it_is_not_set(name) -> None:
    off, on = SETTINGS[name]
    assert advise(ListenConfig(**off).to_dict(), name) == REMEDIES[name].text
    assert advise(ListenConfig(**on).to_dict(), name) is None


@pytest.mark.parametrize("name", sorted(ALWAYS))
def test_remedies_outside_the_configuration_are_always_advised(name) -> None:
    assert advise(ListenConfig().to_dict(), name) == REMEDIES[name].text


def test_keys_that_the_training_has_initialized_are_not_advised() -> None:
    known = {**ListenConfig().to_dict(), "init_keys_at_steps": [2]}
    assert advise(known, "init_keys_at_steps") is None
    assert "unless the training did" in str(advise({**known, "init_keys_at_steps": []}, "init_keys_at_steps"))


def test_standardization_is_advised_after_centering_only() -> None:
    # The configuration refuses it without centering.
    assert advise(ListenConfig(center_queries=False).to_dict(), "standardize_queries") is None


@pytest.fixture(scope="module")
def poor_summary(make_records):
    predictions = [{"task": "asr", "answer": "ab"[row % 2], "generated": "a"} for row in range(20)]
    return summarize(make_records(apart=False, pool_size=300), predictions=predictions)


def test_no_finding_advises_a_setting_that_is_on(poor_summary) -> None:
    # Those of training warnings alone are left out: they would only lengthen the test.
    names = [name for name in SETTINGS if name not in ("standardize_queries", "slower_projector", "smaller_key_loss")]
    advised = set()
    for choice in itertools.product((0, 1), repeat=len(names)):
        settings = {}
        for name, on in zip(names, choice, strict=True):
            settings |= SETTINGS[name][on]
        for standardized in (False, settings["center_queries"]):
            config = ListenConfig(**settings, standardize_queries=standardized).to_dict()
            for finding in rate(poor_summary, config)[1]:
                # The values that are advised: `name=value`, or a name alone.
                for name, value in re.findall(r"(\w+)=(\w+|\"\w+\")", finding.advice or ""):
                    advised.add(name)
                    if name != "shared_prompt_mode" or config["num_shared_prompts"]:
                        assert str(config[name]) != value.strip('"'), (finding.title, config)
                for name in ("query_ignored_token_ids", "num_shared_prompts"):
                    if name in (finding.advice or ""):
                        advised.add(name)
                        assert not config[name]
    assert advised == {
        "center_queries",
        "standardize_queries",
        "query_pooling",
        "query_ignored_token_ids",
        "selector",
        "num_shared_prompts",
        "shared_prompt_mode",
        "stochastic_prompt_length",
    }


def test_remedies_are_joined_to_one_sentence() -> None:
    config = ListenConfig.paper().to_dict()
    assert advise(config, "center_queries") == "set center_queries=True"
    assert advise(config, "center_queries", "grouped") == 'set center_queries=True, or use selector="grouped"'
    assert advise(config, "center_queries", "query_pooling", "grouped") == (
        'set center_queries=True, set query_pooling="modality_mean", or use selector="grouped"'
    )


def test_advice_for_an_unknown_configuration_says_so() -> None:
    assert advise({}, "center_queries") == "set center_queries=True (unless set: the configuration is not known)"
    assert advise({}, "fixed_length") is None


@pytest.mark.parametrize("value", [None, True, 3, -1.5, "text", [], ["a"], {}, {"a": {}}])
def test_values_of_any_type_are_accepted(value, poor_summary) -> None:
    # Records come from a file, which may contain any JSON.
    rate(poor_summary, dict.fromkeys([*ListenConfig().to_dict(), "unknown"], value))
