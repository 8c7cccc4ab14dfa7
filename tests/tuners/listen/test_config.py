"""The configuration rejects invalid values, and every field is used."""

import ast
import copy
import dataclasses
import json
import pickle
from pathlib import Path

import pytest
from peft import PeftConfig, get_peft_config

import peft_listen
from peft_listen import ListenConfig


OWN_FIELDS = sorted(
    {f.name for f in dataclasses.fields(ListenConfig)} - {f.name for f in dataclasses.fields(PeftConfig)}
)


@pytest.mark.parametrize("name", OWN_FIELDS)
def test_every_field_is_read_somewhere_and_documented_twice(name):
    if name == "modules_to_save":
        return  # read by PEFT
    folder = Path(peft_listen.__file__).parent
    sources = [*folder.glob("tuners/listen/*.py"), *folder.glob("training/*.py")]
    nodes = [node for source in sources for node in ast.walk(ast.parse(source.read_text()))]
    reads = [
        node.value
        for node in nodes
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Load)
    ]
    configs = [ast.unparse(value) for value in reads if "config" in ast.unparse(value)]
    if name == "shared_prompt_mode":  # behind a property of the configuration
        configs = [unparsed for value in reads if (unparsed := ast.unparse(value)) == "self"]
    assert configs, f"no line reads `config.{name}`"
    assert f"        {name} (" in ListenConfig.__doc__
    (field,) = (field for field in dataclasses.fields(ListenConfig) if field.name == name)
    assert field.metadata["help"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pool_size": 0}, "`pool_size` must be an integer of at least 1, got 0"),
        ({"pool_size": 2.5}, "`pool_size` must be an integer of at least 1, got 2.5"),
        ({"prompt_length": 0}, "`prompt_length` must be an integer of at least 1, got 0"),
        ({"prompt_length": 401}, "`prompt_length`=401 exceeds the size of the pool .`pool_size`=400"),
        ({"pool_size": 5, "prompt_length": 2, "max_train_prompt_length": 6}, "`max_train_prompt_length`=6.*=5"),
        ({"max_train_prompt_length": 0}, "`max_train_prompt_length` must be an integer of at least 1, got 0"),
        ({"key_loss_weight": -1.0}, "`key_loss_weight` must be a finite number of at least 0, got -1.0"),
        ({"key_loss_weight": float("nan")}, "`key_loss_weight` must be a finite number"),
        ({"key_loss_weight": float("inf")}, "`key_loss_weight` must be a finite number"),
        ({"key_loss_weight": "much"}, "`key_loss_weight` must be a finite number of at least 0, got 'much'"),
        ({"key_loss_reduction": "max"}, "`key_loss_reduction` must be 'mean' or 'sum', got 'max'"),
        ({"init_weights": "zeros"}, "`init_weights` must be True, False, 'vocab' or 'normal', got 'zeros'"),
        ({"standardize_queries": True, "center_queries": False}, "Set `center_queries=True` too"),
        ({"query_pooling": "max"}, "`query_pooling` must be 'mean' or 'modality_mean', got 'max'"),
        ({"query_ignored_token_ids": ["user"]}, "`query_ignored_token_ids` must contain token ids"),
        ({"num_shared_prompts": -1}, "`num_shared_prompts` must be an integer of at least 0, got -1"),
        ({"shared_prompt_mode": "sum"}, "`shared_prompt_mode` must be 'prepend' or 'add', got 'sum'"),
        (
            {"shared_prompt_mode": "add", "num_shared_prompts": 9},
            "`num_shared_prompts`=9 is too small to add a shared prompt to each of the `prompt_length`=10 selected ones. Set "
            "`num_shared_prompts=10`, a smaller `prompt_length`, or `shared_prompt_mode='prepend'`",
        ),
        (
            {"num_shared_prompts": 10, "max_train_prompt_length": 40},
            "`num_shared_prompts`=10 is too small to add .* to each of the `max_train_prompt_length`=40 selected ones",
        ),
        ({"stochastic_prompt_length": 1}, "`stochastic_prompt_length` must be True or False, got 1"),
        ({"query_mean_momentum": "0.9"}, r"`query_mean_momentum` must be a number in \[0, 1\), got '0.9'"),
        ({"query_mean_momentum": 1.0}, r"`query_mean_momentum` must be a number in \[0, 1\), got 1.0"),
        ({"center_queries": "no"}, "`center_queries` must be True or False, got 'no'"),
        ({"selector": ["similarity"]}, r"`selector` must be the name of a registered selector, got \['similarity'\]"),
        ({"selector_kwargs": [1]}, r"`selector_kwargs` must be a dictionary of keyword arguments, got \[1\]"),
        ({"backbone": 3}, "`backbone` must be the dotted path of a module, got 3"),
        ({"modules_to_save": "lm_head"}, "`modules_to_save` must be a list of module names, got 'lm_head'"),
        ({"query_ignored_token_ids": 5}, "`query_ignored_token_ids` must contain token ids, got 5"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        ({"seed": 0.5}, "`seed` must be an integer of at least 0, got 0.5"),
    ],
)
def test_invalid_values_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        ListenConfig(**settings)


def test_a_selector_that_is_not_registered_raises_when_it_is_attached(build, attach):
    with pytest.raises(ValueError, match=r"no selector 'nearest'; registered are"):
        attach(build(), selector="nearest")
    with pytest.raises(ValueError, match=r"'attention' does not take `selector_kwargs`={'heat': 1}"):
        attach(build(), selector="attention", selector_kwargs={"heat": 1})


def test_a_configuration_survives_saving_and_loading(tmp_path):
    config = ListenConfig(pool_size=33, selector="attention", selector_kwargs={"temperature": 2.0}, seed=7)
    config.save_pretrained(tmp_path)
    loaded = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, ListenConfig)
    assert loaded.to_dict() == config.to_dict()


def test_fields_without_a_value_get_that_of_the_other_fields():
    def derived(config):
        return config.stochastic_prompt_length, config.max_train_prompt_length, config.num_shared_prompts

    assert derived(ListenConfig()) == (False, 10, 10)
    assert derived(ListenConfig(prompt_length=160)) == (False, 160, 160)
    assert derived(ListenConfig(stochastic_prompt_length=True)) == (True, 20, 20)
    assert derived(ListenConfig(stochastic_prompt_length=True, pool_size=13)) == (True, 13, 13)
    assert derived(ListenConfig(max_train_prompt_length=30)) == (True, 30, 30)
    assert derived(ListenConfig(max_train_prompt_length=4)) == (True, 4, 10)
    assert derived(ListenConfig(shared_prompt_mode="prepend")) == (False, 10, 0)
    assert derived(ListenConfig(num_shared_prompts=0)) == (False, 10, 0)
    assert derived(ListenConfig.paper()) == (True, 400, 0)
    assert derived(ListenConfig.paper(pool_size=30)) == (True, 30, 0)


FORMER = {"pool_size": 33, "prompt_length": 4, "peft_type": "LISTEN", "peft_version": "0.21.2", "inference_mode": True}


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        # The fields did not exist, or had no value: `num_shared_prompts` and its mode are newer than the first version.
        ({}, (True, 33, 0, "prepend", "mean")),
        ({"stochastic_prompt_length": True, "max_train_prompt_length": None}, (True, 33, 0, "prepend", "mean")),
        ({"stochastic_prompt_length": False, "max_train_prompt_length": None}, (False, 4, 0, "prepend", "mean")),
        ({"max_train_prompt_length": 8}, (True, 8, 0, "prepend", "mean")),
        ({"num_shared_prompts": 3}, (True, 33, 3, "prepend", "mean")),
        ({"num_shared_prompts": 33, "shared_prompt_mode": "add"}, (True, 33, 33, "add", "mean")),
        ({"query_pooling": "modality_mean"}, (True, 33, 0, "prepend", "modality_mean")),
    ],
)
@pytest.mark.parametrize("config_class", [PeftConfig, ListenConfig])
def test_a_configuration_of_an_earlier_version_keeps_the_defaults_of_that_version(
    saved, expected, config_class, tmp_path
):
    (tmp_path / "adapter_config.json").write_text(json.dumps(FORMER | saved))
    config = config_class.from_pretrained(tmp_path)
    names = ("stochastic_prompt_length", "max_train_prompt_length", "num_shared_prompts", "shared_prompt_mode")
    names += ("query_pooling",)
    assert tuple(getattr(config, name) for name in names) == expected
    config.save_pretrained(tmp_path / "again")
    assert config_class.from_pretrained(tmp_path / "again").to_dict() == config.to_dict()


def test_a_configuration_made_from_another_is_checked_and_gets_the_present_defaults():
    config = ListenConfig(pool_size=40)
    with pytest.raises(ValueError, match=r"`num_shared_prompts`=10 is too small .*`prompt_length`=40 selected ones"):
        dataclasses.replace(config, prompt_length=40)
    unset = {"max_train_prompt_length": None, "num_shared_prompts": None}
    changed = ListenConfig(**{**config.to_dict(), "prompt_length": 20, **unset})
    assert (changed.max_train_prompt_length, changed.num_shared_prompts) == (20, 20)
    assert dataclasses.replace(config, prompt_length=5).max_train_prompt_length == 5
    assert dataclasses.replace(config) == config


def test_a_dictionary_that_was_not_saved_gets_the_present_defaults():
    config = get_peft_config({"peft_type": "LISTEN", "pool_size": 33, "inference_mode": False})
    assert config.to_dict() == ListenConfig(pool_size=33).to_dict()


@pytest.mark.parametrize("settings", [{}, {"max_train_prompt_length": 20}, {"shared_prompt_mode": "prepend"}])
def test_all_fields_are_saved_with_their_values(settings, tmp_path):
    config = ListenConfig(pool_size=33, **settings)
    config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    derived = ("stochastic_prompt_length", "max_train_prompt_length", "num_shared_prompts", "shared_prompt_mode")
    assert all(saved[name] is not None for name in derived)
    assert PeftConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()


OFF = {"usage_balance": 0.0, "reseed_every": 0, "exploration": 0.0, "exploration_steps": 0, "query_dropout": 0.0}
OFF |= {"detach_query": True, "paper_form": False}
ON = {"usage_balance": 0.5, "reseed_every": 100, "exploration": 0.1, "query_dropout": 0.3}
ON |= {"detach_query": False, "paper_form": True}


def written_by_an_earlier_version(folder, **removed):
    ListenConfig(pool_size=33).save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | OFF | removed))


@pytest.mark.parametrize("config_class", [PeftConfig, ListenConfig])
def test_removed_fields_that_are_off_load_with_a_warning(config_class, tmp_path):
    written_by_an_earlier_version(tmp_path)
    with pytest.warns(UserWarning, match="usage_balance"):
        config = config_class.from_pretrained(tmp_path)
    assert config.to_dict() == ListenConfig(pool_size=33).to_dict()


@pytest.mark.parametrize("config_class", [PeftConfig, ListenConfig])
@pytest.mark.parametrize("name", ON)
def test_removed_fields_that_are_on_raise_by_name(name, config_class, tmp_path):
    written_by_an_earlier_version(tmp_path, **{name: ON[name]})
    with pytest.raises(ValueError, match=rf"`{name}`={ON[name]} is no longer supported.*adapter_config.json"):
        config_class.from_pretrained(tmp_path)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda config: pickle.loads(pickle.dumps(config))])
def test_a_configuration_can_be_copied(copied):
    config = ListenConfig(pool_size=33, selector_kwargs={"temperature": 2.0}, selector="attention")
    assert copied(config).to_dict() == config.to_dict()
