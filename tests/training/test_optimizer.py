"""Keys, values and other parameters have separate learning rates, and every trained parameter is in a group."""

import pytest
import torch

from peft_listen.training import parameter_groups


@pytest.fixture(scope="module")
def model(make_adapted):
    return make_adapted()


def names_of(model, group):
    ours = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ours}


def test_keys_values_and_other_parameters_have_separate_groups(model):
    keys, values, rest = parameter_groups(model, 1e-3, weight_decay=0.1)
    assert all(name.endswith("listen_pools.default.keys") for name in names_of(model, keys))
    assert all(name.endswith("listen_pools.default.values") for name in names_of(model, values))
    assert all("multi_modal_projector" in name for name in names_of(model, rest))
    assert [len(group["params"]) for group in (keys, values)] == [1, 1]
    assert [group["lr"] for group in (keys, values, rest)] == pytest.approx([1e-3, 1e-2, 1e-3])
    assert [group["weight_decay"] for group in (keys, values, rest)] == [0.0, 0.0, 0.1]


def test_given_rates_are_used(model):
    keys, values, rest = parameter_groups(model, 1e-3, value_learning_rate=0.5, key_learning_rate=0.0)
    assert [group["lr"] for group in (keys, values, rest)] == [0.0, 0.5, 1e-3]


def test_shared_prompts_have_the_rate_of_the_values_or_the_given_one(make_adapted):
    model = make_adapted(num_shared_prompts=2)
    for given, expected in (({}, 1e-2), ({"shared_value_learning_rate": 0.5}, 0.5)):
        _, values, shared, _ = parameter_groups(model, 1e-3, **given)
        assert all(name.endswith("listen_pools.default.shared_values") for name in names_of(model, shared))
        assert (values["lr"], shared["lr"], shared["weight_decay"]) == (
            pytest.approx(1e-2),
            pytest.approx(expected),
            0,
        )


def test_values_that_shared_prompts_are_added_to_have_a_lower_rate(make_adapted):
    model = make_adapted(shared_prompt_mode="add")
    for given, expected in (
        ({}, (1e-3, 1e-2)),
        ({"value_learning_rate": 0.5}, (0.5, 0.5)),
        ({"shared_value_learning_rate": 0.5}, (1e-3, 0.5)),
        ({"value_learning_rate": 0.25, "shared_value_learning_rate": 0.5}, (0.25, 0.5)),
    ):
        keys, values, shared, _ = parameter_groups(model, 1e-3, **given)
        assert all(name.endswith("listen_pools.default.values") for name in names_of(model, values))
        assert (values["lr"], shared["lr"]) == pytest.approx(expected)
        assert keys["lr"] == 1e-3


def test_every_trained_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model, 1e-3)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = [name for group in groups for name in names_of(model, group)]
    assert sorted(names) == sorted(trained)


def test_empty_groups_are_omitted():
    model = torch.nn.Linear(2, 2)
    (group,) = parameter_groups(model, 1e-3)
    assert len(group["params"]) == 2
    torch.optim.AdamW(parameter_groups(model, 1e-3))
