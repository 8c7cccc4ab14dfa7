"""The compared methods: each adds its adapter to the base model and specifies how it is trained.

With embeddings of size 576, a pool of 400 keys and values has as many parameters as LoRA of rank 8 on `q_proj` and
`v_proj` of SmolLM2-135M: 460 800. Every method also trains the projector, which is not counted.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig
from peft_listen.training import ListenCallback, chat_template_token_ids
from peft_listen.tuners.listen import find_listen_layer

from .controls import clip_route, register_controls, take_routes, task_route
from .settings import TASKS
from .trials import KeysBeforeTraining, mix_values, start_from_text


PROJECTOR = "multi_modal_projector"
# Whisper has projections of the same names.
LANGUAGE_MODEL_PROJECTIONS = r".*language_model\..*\.(q_proj|v_proj)"


@dataclass
class Adapted:
    """
    A model that is ready for training.

    Args:
        model (`torch.nn.Module`): the base model with its adapter.
        callbacks (`list[TrainerCallback]`, defaults to `[]`): callbacks of its trainer.
        value_rate (`float`, defaults to 1.0): learning rate of the pool's values, relative to that of soft prompts.
        route (`Callable`, *optional*): number of a row, by which a control selects its prompts; see `controls.py`.
    """

    model: torch.nn.Module
    callbacks: list[TrainerCallback] = field(default_factory=list)
    value_rate: float = 1.0
    route: Callable[[Mapping[str, Any]], int] | None = None

    def num_adapter_parameters(self) -> int:
        """Number of trainable parameters outside the projector."""
        return sum(
            parameter.numel()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad and PROJECTOR not in name
        )


CONFIG_FIELDS = frozenset(field.name for field in fields(ListenConfig))

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
    base: AudioListenForCausalLM,
    processor: AudioListenProcessor,
    seed: int,
    prompt_length: int = 20,
    value_layers: list[int] | None = None,
    start_text: bool = False,
) -> Adapted:
    """
    One soft prompt for all inputs, as in prompt tuning (Lester et al., arXiv 2104.08691) or, with `value_layers`, as in deep
    prompt tuning (P-Tuning v2, arXiv 2110.07602).

    It is inserted at the position of the pool's prompts, whereas PEFT's own `PromptTuningConfig` inserts it before the
    padding. It is a pool with one prompt per position, all of which are always selected. The keys have no effect and are
    not trained.

    Args:
        base ([`AudioListenForCausalLM`]): the base model.
        processor ([`AudioListenProcessor`]): its processor.
        seed (`int`): seed of the initialization.
        prompt_length (`int`, defaults to 20): number of prompts.
        value_layers (`list[int]`, *optional*): decoder layers at whose inputs the prompts get further vectors.
        start_text (`bool`, defaults to `False`): initialize the prompts with a text, see `trials.py`.
    """
    adapted = _without_choice(
        base,
        pool_size=prompt_length,
        prompt_length=prompt_length,
        selector="grouped",
        selector_kwargs={"num_groups": prompt_length},
        num_shared_prompts=0,
        seed=seed,
        **({} if value_layers is None else {"value_layers": value_layers}),
    )
    if start_text:
        start_from_text(adapted.model, processor.tokenizer)
    return adapted


@register_method("routed")
def routed(
    base: AudioListenForCausalLM,
    processor: AudioListenProcessor,
    seed: int,
    rule: Literal["task", "random"],
    prompt_length: int = 20,
    prompts_per_position: int = 2,
    value_rate: float = 1.0,
    **config: Any,
) -> Adapted:
    """
    A control: a rule selects the prompts, see `controls.py`. The keys have no effect and are not trained.

    Args:
        base ([`AudioListenForCausalLM`]): the base model.
        processor ([`AudioListenProcessor`]): its processor.
        seed (`int`): seed of the initialization.
        rule (`str`): `"task"`, the prompts of the row's task; `"random"`, those of a fixed hash of the clip.
        prompt_length (`int`, defaults to 20): number of prompts; as many shared prompts are added to them.
        prompts_per_position (`int`, defaults to 2): prompts of the pool for each position.
        value_rate (`float`, defaults to 1.0): learning rate of the values, relative to that of soft prompts.
        config: other options of [`ListenConfig`].
    """
    register_controls()
    selector, route = {"task": ("task_known", task_route(TASKS)), "random": ("random_routing", clip_route)}[rule]
    adapted = _without_choice(
        base,
        pool_size=prompts_per_position * prompt_length,
        prompt_length=prompt_length,
        selector=selector,
        selector_kwargs={"num_groups": prompt_length},
        **{"num_shared_prompts": prompt_length, "seed": seed, **config},
    )
    take_routes(adapted.model.get_base_model())
    return replace(adapted, value_rate=value_rate, route=route)


@register_method("random_prompts")
def random_prompts(base: AudioListenForCausalLM, processor: AudioListenProcessor, seed: int) -> Adapted:
    """
    Up to 20 prompts that are not trained, for the stage before the runs (`start.py`): embeddings of random tokens, one of 20 at
    each position by a fixed hash of the clip. Their number is drawn for every step.
    """
    config = {"num_shared_prompts": 0, "shared_prompt_mode": "prepend", "max_train_prompt_length": 20}
    adapted = routed(
        base, processor, seed, "random", prompt_length=20, prompts_per_position=20, modules_to_save=None, **config
    )
    find_listen_layer(adapted.model).pool_of().requires_grad_(False)
    return adapted


def _without_choice(base: AudioListenForCausalLM, **config: Any) -> Adapted:
    """A pool in which the queries decide nothing."""
    trained = {"modules_to_save": [PROJECTOR], **config}
    listen_config = ListenConfig(key_loss_weight=0.0, task_type="CAUSAL_LM", **trained)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*keys of the .* selector are not trained")
        model = get_peft_model(base, listen_config)
    find_listen_layer(model).pool_of().keys.requires_grad_(False)
    # All rows select the same prompts by design, so the warnings of collapse are off.
    return Adapted(model, [ListenCallback(collapse_threshold=2.0)])


@register_method("listen")
def listen(
    base: AudioListenForCausalLM,
    processor: AudioListenProcessor,
    seed: int,
    init_keys_at_steps: list[int] | None = None,
    ignore_template: bool = False,
    paper_form: bool = False,
    value_rate: float = 1.0,
    start_text: bool = False,
    mixing_temperature: float | None = None,
    keys_from_rows: int | None = None,
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
        value_rate (`float`, defaults to 1.0): learning rate of the values, relative to that of soft prompts.
        start_text (`bool`, defaults to `False`): initialize the shared prompts with a text, see `trials.py`.
        mixing_temperature (`float`, *optional*): mix the values of each position, see `trials.py`.
        keys_from_rows (`int`, *optional*): initialize the keys from so many rows before the training, see `trials.py`.
        config: options of [`ListenConfig`].
    """
    if ignore_template:
        config["query_ignored_token_ids"] = chat_template_token_ids(processor)
    make_config = ListenConfig.paper if paper_form else ListenConfig
    listen_config = make_config(**config, modules_to_save=[PROJECTOR], task_type="CAUSAL_LM", seed=seed)
    model = get_peft_model(base, listen_config)
    if start_text:
        start_from_text(model, processor.tokenizer)
    if mixing_temperature is not None:
        mix_values(model, mixing_temperature)
    callbacks: list[TrainerCallback] = [] if keys_from_rows is None else [KeysBeforeTraining(keys_from_rows)]
    callbacks.append(ListenCallback(init_keys_at_steps=init_keys_at_steps or ()))
    return Adapted(model, callbacks, value_rate)


def missing_options(method: str, options: Mapping[str, Any]) -> list[str]:
    """
    The options of a method that this version does not have: removed ones, or ones of a later version.

    Args:
        method (`str`): a registered method, or one that was removed.
        options (`Mapping[str, Any]`): options for it.

    Returns:
        `list[str]`: the names of the missing options, or that of the method if it is missing.
    """
    if method not in METHODS:
        return [method]
    parameters = inspect.signature(METHODS[method]).parameters
    known = set(parameters)
    if "value_layers" in parameters and "value_layers" not in CONFIG_FIELDS:
        known.remove("value_layers")
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        known |= CONFIG_FIELDS
    return sorted(set(options) - known)
