"""Parameter groups and optimizer: soft prompts need a much higher learning rate than other parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ..tuners.listen import PromptPool


def create_listen_optimizer(
    model: nn.Module,
    args: TrainingArguments,
    value_learning_rate: float | None = None,
    shared_value_learning_rate: float | None = None,
    key_learning_rate: float | None = None,
    other_learning_rates: Mapping[str, float] | None = None,
) -> torch.optim.Optimizer:
    """
    Creates the optimizer that the training arguments name, with the learning rates of [`parameter_groups`].

    `Trainer` and `SFTTrainer` take it as `optimizers=(optimizer, None)`, and create the schedule of the learning rates from
    the arguments. Their own optimizer would have one learning rate for all parameters, with which the prompts hardly change.

    Args:
        model (`nn.Module`): with a LiSTEN adapter.
        args ([`~transformers.TrainingArguments`]):
            those of the trainer: `optim`, `learning_rate`, `weight_decay`, `adam_beta1` and so on.
        value_learning_rate, shared_value_learning_rate, key_learning_rate (`float`, *optional*):
            see [`parameter_groups`].
        other_learning_rates (`Mapping[str, float]`, *optional*): see [`parameter_groups`].

    Returns:
        `torch.optim.Optimizer`

    Raises:
        ValueError: for an `optim` that makes its own parameter groups, such as GaLore or LOMO, and for a name in
            `other_learning_rates` that no such parameter has.

    Example:

    ```python
    args = TrainingArguments("checkpoints", learning_rate=1e-3, remove_unused_columns=False)
    trainer = Trainer(model, args, train_dataset=dataset, optimizers=(create_listen_optimizer(model, args), None))
    ```
    """
    trained: Any = model
    optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(args, trained)
    own_groups = {"params", "model", "optimizer_dict"}.intersection(settings)
    if own_groups or not (isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.Optimizer)):
        raise ValueError(
            f"`optim={str(getattr(args.optim, 'value', args.optim))!r}` makes its own parameter groups, so the prompts "
            "would not get learning rates of their own. Use an optimizer with one learning rate per group, such as "
            "`optim='adamw_torch'`."
        )
    groups = parameter_groups(
        model,
        args.learning_rate,
        value_learning_rate=value_learning_rate,
        shared_value_learning_rate=shared_value_learning_rate,
        key_learning_rate=key_learning_rate,
        other_learning_rates=other_learning_rates,
        weight_decay=args.weight_decay,
    )
    optimizer: torch.optim.Optimizer = optimizer_class(groups, **settings)
    return optimizer


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    value_learning_rate: float | None = None,
    shared_value_learning_rate: float | None = None,
    key_learning_rate: float | None = None,
    other_learning_rates: Mapping[str, float] | None = None,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """
    Parameter groups for a torch optimizer: keys, values, and all other trained parameters.

    A value is trained only in the steps in which it is selected, and soft prompts need ten to a hundred times the
    learning rate of other adapters (Lester et al., arXiv 2104.08691). Keys and values get no weight decay: it would
    pull those that are not selected toward zero.

    Args:
        model (`nn.Module`): with a LiSTEN adapter.
        learning_rate (`float`): for the projector, other adapters, and all other parameters that require gradients.
        value_learning_rate (`float`, *optional*):
            for the values. If not given, 10 times `learning_rate`, or `learning_rate` where shared prompts are added to
            them (`shared_prompt_mode="add"`): every row trains the shared prompts and few rows train each value, which
            learns single examples at a higher rate.
        shared_value_learning_rate (`float`, *optional*):
            for the shared prompts; `value_learning_rate` if not given, or 10 times `learning_rate` without both.
        key_learning_rate (`float`, *optional*): for the keys; `learning_rate` if not given.
        other_learning_rates (`Mapping[str, float]`, *optional*):
            for those of the other parameters whose names contain a string, such as `{"multi_modal_projector": 1e-4}`. The
            first string of the mapping that a name contains gives its rate.
        weight_decay (`float`, defaults to 0.0):
            for parameters that are neither keys nor values, and, as in the optimizer of `Trainer`, neither biases nor
            weights of normalization layers.

    Returns:
        `list[dict]`: groups with `params`, `lr` and `weight_decay`; empty ones are left out.

    Raises:
        ValueError: for a name in `other_learning_rates` that no such parameter has.

    Example:

    ```python
    optimizer = torch.optim.AdamW(parameter_groups(model, learning_rate=1e-3))
    trainer = Trainer(model, args, train_dataset=dataset, optimizers=(optimizer, None))
    ```
    """
    prompt_rate = 10 * learning_rate if value_learning_rate is None else value_learning_rate
    rates = {
        "keys": learning_rate if key_learning_rate is None else key_learning_rate,
        "values": prompt_rate,
        "added_values": learning_rate if value_learning_rate is None else value_learning_rate,
        "shared_values": prompt_rate if shared_value_learning_rate is None else shared_value_learning_rate,
    }
    kinds = {
        id(parameter): "added_values" if kind == "values" and pool.config.adds_shared_prompts else kind
        for pool in model.modules()
        if isinstance(pool, PromptPool)
        for name, parameter in pool.named_parameters()
        for kind in [name.removeprefix("deep_")]  # vectors at deeper layers, of values and of shared prompts
    }
    groups: dict[str, dict[str, Any]] = {
        kind: {"params": [], "lr": rate, "weight_decay": 0.0} for kind, rate in rates.items()
    }
    decayed = _decayed_names(model)
    other_rates = dict(other_learning_rates or {})
    unused = set(other_rates)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        group = kinds.get(id(parameter), "other")
        if group == "other":
            matching = next((part for part in other_rates if part in name), None)
            unused.discard(matching)
            rate = learning_rate if matching is None else other_rates[matching]
            decay = weight_decay if name in decayed else 0.0
            group = f"{rate} {decay}"
            groups.setdefault(group, {"params": [], "lr": rate, "weight_decay": decay})
        groups[group]["params"].append(parameter)
    if unused:
        raise ValueError(
            f"`other_learning_rates` has rates for {sorted(unused)}, but no trained parameter outside of the prompts has "
            "such a name and no other rate. Pass parts of the names of `model.named_parameters()`."
        )
    return [group for group in groups.values() if group["params"]]


def _decayed_names(model: nn.Module) -> frozenset[str]:
    # The rule of the trainer's own optimizer. The method does not read the trainer, which does not exist yet.
    trainer: Any = None
    return frozenset(Trainer.get_decay_parameter_names(trainer, model))
