"""Keys, values and other parameters have separate learning rates, and every trained parameter is in a group."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from peft_listen.training import AudioListenCollator, create_listen_optimizer, parameter_groups, sft_config


@pytest.fixture(scope="module")
def model(make_adapted):
    return make_adapted()


def names_of(model, group):
    ours = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in ours}


def test_keys_values_and_other_parameters_have_separate_groups(model):
    keys, values, rest, without_decay = parameter_groups(model, 1e-3, weight_decay=0.1)
    assert all(name.endswith("listen_pools.default.keys") for name in names_of(model, keys))
    assert all(name.endswith("listen_pools.default.values") for name in names_of(model, values))
    assert all("multi_modal_projector" in name for group in (rest, without_decay) for name in names_of(model, group))
    assert [len(group["params"]) for group in (keys, values)] == [1, 1]
    groups = (keys, values, rest, without_decay)
    assert [group["lr"] for group in groups] == pytest.approx([1e-3, 1e-2, 1e-3, 1e-3])
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0, 0.1, 0.0]


def test_the_same_parameters_decay_as_in_the_optimizer_of_the_trainer(model, tmp_path):
    args = TrainingArguments(str(tmp_path), weight_decay=0.1, use_cpu=True, report_to=[])

    def decayed(optimizer):
        groups = [group for group in optimizer.param_groups if group["weight_decay"] > 0]
        return {name for group in groups for name in names_of(model, group) if ".listen_pools." not in name}

    ours = decayed(create_listen_optimizer(model, args))
    assert ours == decayed(Trainer(model, args).create_optimizer())
    assert not any("bias" in name or "norm" in name for name in ours) and ours


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


def test_other_parameters_have_the_rate_of_the_first_name_that_they_contain(model):
    rates = {"default.linear": 1e-4, "multi_modal_projector": 5e-4}
    groups = parameter_groups(model, 1e-3, other_learning_rates=rates, weight_decay=0.1)
    rate_of = {name: group["lr"] for group in groups for name in names_of(model, group)}
    linear = {name for name in rate_of if "multi_modal_projector.modules_to_save.default.linear." in name}
    others = {name for name in rate_of if "multi_modal_projector" in name} - linear
    assert len(linear) == 2 and len(others) > 2
    assert {rate_of[name] for name in linear} == {1e-4} and {rate_of[name] for name in others} == {5e-4}
    (bias,) = [name for name in linear if name.endswith("bias")]
    decay_of = {name: group["weight_decay"] for group in groups for name in names_of(model, group)}
    assert [decay_of[name] for name in sorted(linear)] == [0.0 if name == bias else 0.1 for name in sorted(linear)]
    keys, values = groups[:2]
    assert (keys["lr"], values["lr"]) == (1e-3, 1e-2)


@pytest.mark.parametrize("names", [["no_such_layer"], ["listen_pools"], ["multi_modal_projector", "default.linear"]])
def test_a_rate_that_no_parameter_gets_raises(model, names, tmp_path):
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match=rf"`other_learning_rates` has rates for \['{names[-1]}'\]"):
        create_listen_optimizer(model, args, other_learning_rates=dict.fromkeys(names, 1e-4))


def test_every_trained_parameter_is_in_exactly_one_group(model):
    groups = parameter_groups(model, 1e-3, other_learning_rates={"linear": 1e-4})
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    names = [name for group in groups for name in names_of(model, group)]
    assert sorted(names) == sorted(trained)


def test_empty_groups_are_omitted():
    model = torch.nn.Linear(2, 2)
    (group,) = parameter_groups(model, 1e-3)
    assert len(group["params"]) == 2
    torch.optim.AdamW(parameter_groups(model, 1e-3))


@pytest.mark.parametrize(
    ("optim", "kind"), [("adamw_torch", torch.optim.AdamW), ("adagrad", torch.optim.Adagrad), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_is_that_of_the_arguments(model, tmp_path, optim, kind):
    args = TrainingArguments(
        str(tmp_path), optim=optim, learning_rate=2e-3, weight_decay=0.1, adam_beta2=0.98, use_cpu=True
    )
    optimizer = create_listen_optimizer(model, args, key_learning_rate=0.0)
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.0, 2e-2, 2e-3, 2e-3])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0, 0.1, 0.0]
    if kind is torch.optim.AdamW:
        assert all(group["betas"] == (0.9, 0.98) for group in optimizer.param_groups)


@pytest.mark.parametrize("optim", ["lomo", "galore_adamw"])
def test_an_optimizer_with_groups_of_its_own_raises(model, tmp_path, monkeypatch, optim):
    # Stands for packages that are not installed; only the arguments that transformers makes for them are read.
    made = {"lomo": {"model": model, "lr": 1e-3}, "galore_adamw": {"params": [], "lr": 1e-3}}[optim]
    monkeypatch.setattr(Trainer, "get_optimizer_cls_and_kwargs", staticmethod(lambda *_: (torch.optim.AdamW, made)))
    args = TrainingArguments(str(tmp_path), optim=optim, optim_target_modules=["q_proj"], use_cpu=True)
    with pytest.raises(ValueError, match=rf"`optim='{optim}'` makes its own parameter groups.*adamw_torch"):
        create_listen_optimizer(model, args)


@pytest.mark.parametrize("trainer", ["Trainer", "SFTTrainer"])
def test_both_trainers_take_the_optimizer_in_one_line(make_adapted, processor, examples, tmp_path, trainer):
    model = make_adapted()
    settings = {"max_steps": 2, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "use_cpu": True}
    settings |= {"save_strategy": "no", "report_to": [], "disable_tqdm": True, "logging_steps": 1}
    if trainer == "Trainer":
        args = TrainingArguments(str(tmp_path), remove_unused_columns=False, **settings)
        others = {"train_dataset": examples, "data_collator": AudioListenCollator(processor)}
        made = Trainer(model, args, optimizers=(create_listen_optimizer(model, args), None), **others)
    else:
        trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
        args = sft_config(tmp_path, bf16=False, **settings)
        others = {
            "train_dataset": datasets.Dataset.from_list(examples),
            "data_collator": AudioListenCollator(processor, supervised_logits_only=False),
            "processing_class": processor,
        }
        made = trl.SFTTrainer(model, args, optimizers=(create_listen_optimizer(model, args), None), **others)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    made.train()
    assert [group["lr"] for group in made.optimizer.param_groups] == pytest.approx([1e-3, 1e-2, 1e-3])
    # Adam's first steps are as long as the rate.
    moved = {name: float((weight - before[name]).abs().max().detach()) for name, weight in model.named_parameters()}
    (values,) = [change for name, change in moved.items() if name.endswith("listen_pools.default.values")]
    (keys,) = [change for name, change in moved.items() if name.endswith("listen_pools.default.keys")]
    assert 0.009 < values < 0.03 and 0 < keys < 0.003
