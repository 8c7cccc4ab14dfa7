"""The configuration refuses what cannot be, and holds nothing that is not read."""

import ast
import dataclasses
from pathlib import Path

import pytest
from peft import PeftConfig

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
    if name == "paper_form":  # sets the others
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
        ({"prompt_length": 401}, "`prompt_length`=401 is more than the pool holds .`pool_size`=400"),
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
        ({"query_ignored_token_ids": ["user"]}, "`query_ignored_token_ids` must hold token ids"),
        ({"query_dropout": 1.0}, r"`query_dropout` must be in \[0, 1\), got 1.0"),
        ({"query_dropout": "half"}, r"`query_dropout` must be in \[0, 1\), got 'half'"),
        ({"num_shared_prompts": -1}, "`num_shared_prompts` must be an integer of at least 0, got -1"),
        ({"shared_prompt_mode": "sum"}, "`shared_prompt_mode` must be 'prepend' or 'add', got 'sum'"),
        (
            {"shared_prompt_mode": "add", "num_shared_prompts": 9},
            "`num_shared_prompts`=9 are too few to be added to `prompt_length`=10 chosen ones. Set "
            "`num_shared_prompts=10`, or a smaller `prompt_length`",
        ),
        (
            {"shared_prompt_mode": "add", "num_shared_prompts": 10},
            "`num_shared_prompts`=10 are too few to be added to `max_train_prompt_length`=400 chosen ones",
        ),
        ({"reseed_every": 1.5}, "`reseed_every` must be an integer of at least 0, got 1.5"),
        ({"usage_balance": float("nan")}, "`usage_balance` must be a finite number of at least 0, got nan"),
        ({"exploration": -0.1}, "`exploration` must be a finite number of at least 0, got -0.1"),
        ({"exploration": 0.1}, "`exploration`=0.1 never ends with `exploration_steps=0`"),
        ({"seed": -1}, "`seed` must be an integer of at least 0, got -1"),
        ({"seed": 0.5}, "`seed` must be an integer of at least 0, got 0.5"),
    ],
)
def test_impossible_values_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ListenConfig(**settings)


def test_a_selector_that_is_not_registered_is_refused_when_it_is_attached(build, attach):
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
