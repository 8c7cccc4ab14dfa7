"""The compared forms: a configuration of PEFT and its learning rates."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from peft import LoraConfig, PeftConfig, PeftModel, PromptTuningConfig

from peft_listen import ListenConfig
from peft_listen.training import parameter_groups


@dataclass(frozen=True)
class Form:
    """
    One row of a table.

    Args:
        label (`str`): its name in the table.
        make_config (`Callable`): makes its configuration for a seed.
        rate (`float`, defaults to 1e-3): learning rate.
        rates (`dict[str, float]`): further learning rates of [`parameter_groups`], for a LISTEN adapter.
    """

    label: str
    make_config: Callable[[int], PeftConfig]
    rate: float = 1e-3
    rates: dict[str, float] = field(default_factory=dict)

    def parameter_groups(self, model: PeftModel) -> list[dict[str, Any]]:
        """Parameter groups for an optimizer."""
        if isinstance(model.active_peft_config, ListenConfig):
            return parameter_groups(model, self.rate, **self.rates)
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": self.rate}]

    def settings(self, seed: int) -> dict[str, Any]:
        """All settings of the form, as JSON."""
        config = self.make_config(seed).to_dict()
        del config["peft_version"]
        return json.loads(json.dumps({"config": config, "rate": self.rate, "rates": self.rates}, default=sorted))


def lora(seed: int) -> PeftConfig:
    """LoRA of rank 8 on the query and value projections."""
    return LoraConfig(r=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def prompt_tuning(seed: int) -> PeftConfig:
    """PEFT's prompt tuning with ten prompts, to whose cost per step all forms are compared."""
    return PromptTuningConfig(num_virtual_tokens=10, task_type="CAUSAL_LM")


def listen(**settings: Any) -> Callable[[int], PeftConfig]:
    """Dynamic prompt selection with some settings that are not the defaults."""
    return lambda seed: ListenConfig(**settings, task_type="CAUSAL_LM", seed=seed)


def paper(seed: int) -> PeftConfig:
    """The paper's form."""
    return ListenConfig.paper(task_type="CAUSAL_LM", seed=seed)


def grouped(num_groups: int, pool_size: int) -> Callable[[int], PeftConfig]:
    """One prompt of each group, with a shared prompt added to it; docs/method.md recommends 40 groups of two prompts."""
    return listen(
        pool_size=pool_size,
        selector="grouped",
        selector_kwargs={"num_groups": num_groups},
        prompt_length=num_groups,
        stochastic_prompt_length=False,
        num_shared_prompts=num_groups,
        shared_prompt_mode="add",
    )


def prompt_rates(values: float, rate: float = 1e-3) -> dict[str, float]:
    """Learning rates of values, relative to `rate`, and of shared prompts."""
    return {"value_learning_rate": values * rate, "shared_value_learning_rate": 10 * rate}


# The forms of the table *first steps*. `ListenConfig(pool_size=400, selector="similarity")` is the same as
# `ListenConfig()`.
FORMS: dict[str, Form] = {
    "default": Form("`ListenConfig()`", listen()),
    "grouped": Form("grouped, 40 groups of two", grouped(40, 80)),
    "paper": Form("`ListenConfig.paper()`", paper),
    "prompt_tuning_3e-2": Form("PromptTuning, 10 prompts, 3e-2", prompt_tuning, 3e-2),
    "prompt_tuning_1e-2": Form("PromptTuning, 10 prompts, 1e-2", prompt_tuning, 1e-2),
    "lora": Form("LoRA, r = 8", lora),
}

# The forms that the defaults were chosen from, on other sentences and seeds.
TRIALS: dict[str, Form] = {
    "values_10x": Form("values at 10 times the rate", listen(), rates=prompt_rates(10)),
    "values_2x": Form("values at twice the rate", listen(), rates=prompt_rates(2)),
    "values_1x": Form("values at the rate: the default", listen(), rates=prompt_rates(1)),
    "values_0.2x": Form("values at 0.2 times the rate", listen(), rates=prompt_rates(0.2)),
    "values_0x": Form("values fixed at zero: one soft prompt", listen(), rates=prompt_rates(0)),
    "drawn_10x": Form(
        "10 times, length drawn from 1 to 20", listen(stochastic_prompt_length=True), rates=prompt_rates(10)
    ),
    "rate_3e-3_10x": Form("10 times, all rates 3 times as high", listen(), 3e-3, prompt_rates(10, 3e-3)),
    "length_20_2x": Form("twice, 20 prompts", listen(prompt_length=20), rates=prompt_rates(2)),
    "groups_10_10x": Form("10 times, 10 groups of two", grouped(10, 20), rates=prompt_rates(10)),
    "groups_40_10x": Form("10 times, 40 groups of two", grouped(40, 80), rates=prompt_rates(10)),
    "lora": FORMS["lora"],
}

FORMS_OF_SPLIT = {"test": FORMS, "tune": TRIALS}
SEEDS_OF_SPLIT = {"test": (0, 1, 2), "tune": (10, 11)}
