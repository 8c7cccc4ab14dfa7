"""The compared methods: each adds its adapter to the base model and specifies how it is trained.

With embeddings of size 576, a pool of 400 keys and values has as many parameters as LoRA of rank 8 on `q_proj` and
`v_proj` of SmolLM2-135M: 460 800. Every method also trains the projector, which is not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import TrainerCallback

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.training import ListenCallback, chat_template_token_ids


PROJECTOR = "multi_modal_projector"
# Whisper has projections of the same names.
LANGUAGE_MODEL_PROJECTIONS = r".*language_model\..*\.(q_proj|v_proj)"

# The stored runs were made with these defaults of `ListenConfig`, and with `max_train_prompt_length=pool_size`.
FORMER_DEFAULTS = {"stochastic_prompt_length": True, "shared_prompt_mode": "prepend", "num_shared_prompts": 0}


@dataclass
class Adapted:
    """
    A model that is ready for training.

    Args:
        model (`torch.nn.Module`): the base model with its adapter.
        callbacks (`list[TrainerCallback]`, defaults to `[]`): callbacks of its trainer.
        value_rate (`float`, defaults to 1.0): learning rate of the pool's values, relative to that of soft prompts.
    """

    model: torch.nn.Module
    callbacks: list[TrainerCallback] = field(default_factory=list)
    value_rate: float = 1.0

    def num_adapter_parameters(self) -> int:
        """Number of trainable parameters outside the projector."""
        return sum(
            parameter.numel()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and PROJECTOR not in name
        )


Method = Callable[..., Adapted]
METHODS: dict[str, Method] = {}


def register_method(name: str) -> Callable[[Method], Method]:
    """Decorator that registers a function `(base, processor, seed, **options) -> Adapted` as the method `name`."""

    def register(function: Method) -> Method:
        METHODS[name] = function
        return function

    return register


@register_method("projector")
def projector(base: AudioListenForCausalLM, processor: AudioListenProcessor, seed: int) -> Adapted:
    """No adapter: the projector alone is trained."""
    return Adapted(base)


@register_method("lora")
def lora(base: AudioListenForCausalLM, processor: AudioListenProcessor, seed: int, rank: int = 8) -> Adapted:
    """LoRA on the query and value projections of the language model, with SALMONN's scaling (alpha = 4 r)."""
    config = LoraConfig(
        r=rank,
        lora_alpha=4 * rank,
        lora_dropout=0.1,
        target_modules=LANGUAGE_MODEL_PROJECTIONS,
        modules_to_save=[PROJECTOR],
        task_type="CAUSAL_LM",
    )
    return Adapted(get_peft_model(base, config))


@register_method("soft_prompt")
def soft_prompt(
    base: AudioListenForCausalLM, processor: AudioListenProcessor, seed: int, prompt_length: int = 40
) -> Adapted:
    """
    One soft prompt for all inputs, as in prompt tuning (Lester et al., arXiv 2104.08691).

    It is inserted at the position of the pool's prompts, whereas PEFT's own `PromptTuningConfig` inserts it before the
    padding. It consists of shared prompts and a pool of one prompt, the smallest possible size.

    Args:
        base ([`AudioListenForCausalLM`]): the base model.
        processor ([`AudioListenProcessor`]): its processor.
        seed (`int`): seed of the initialization.
        prompt_length (`int`, defaults to 40): number of prompts.
    """
    config = ListenConfig(
        pool_size=1,
        prompt_length=1,
        num_shared_prompts=prompt_length - 1,
        shared_prompt_mode="prepend",
        key_loss_weight=1e-6,
        stochastic_prompt_length=False,
        modules_to_save=[PROJECTOR],
        task_type="CAUSAL_LM",
        seed=seed,
    )
    return Adapted(get_peft_model(base, config), [ListenCallback(collapse_threshold=2.0)])


@register_method("listen")
def listen(
    base: AudioListenForCausalLM,
    processor: AudioListenProcessor,
    seed: int,
    init_keys_at_steps: list[int] | None = None,
    ignore_template: bool = False,
    paper_form: bool = False,
    lora_rank: int | None = None,
    value_rate: float = 1.0,
    **config: Any,
) -> Adapted:
    """
    Dynamic prompt selection.

    Args:
        base ([`AudioListenForCausalLM`]): the base model.
        processor ([`AudioListenProcessor`]): its processor.
        seed (`int`): seed of the initialization and of the prompt lengths.
        init_keys_at_steps (`list[int]`, *optional*): optimizer steps before which the keys are initialized from queries.
        ignore_template (`bool`, defaults to `False`): exclude the tokens of the chat template from the query.
        paper_form (`bool`, defaults to `False`): use the paper's form, [`ListenConfig.paper`].
        lora_rank (`int`, *optional*): rank of an additional LoRA adapter.
        value_rate (`float`, defaults to 1.0): learning rate of the values, relative to that of soft prompts.
        config: options of [`ListenConfig`].
    """
    config = {**FORMER_DEFAULTS, "max_train_prompt_length": config.get("pool_size", 400), **config}
    if ignore_template:
        config["query_ignored_token_ids"] = chat_template_token_ids(processor)
    make_config = ListenConfig.paper if paper_form else ListenConfig
    listen_config = make_config(**config, modules_to_save=[PROJECTOR], task_type="CAUSAL_LM", seed=seed)
    model = get_peft_model(base, listen_config)
    if lora_rank is not None:
        lora_config = LoraConfig(
            r=lora_rank, lora_alpha=4 * lora_rank, lora_dropout=0.1, target_modules=LANGUAGE_MODEL_PROJECTIONS
        )
        inject_adapter_in_model(lora_config, model.get_base_model(), adapter_name="lora")
        # PEFT deactivates the trained projector when it injects another adapter. LoRA stays active.
        model.set_adapter("default")
    return Adapted(model, [ListenCallback(init_keys_at_steps=init_keys_at_steps or ())], value_rate)
