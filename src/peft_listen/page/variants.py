"""Variants of the loaded model that are asked: one of its adapters or none, and a number of prompts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import nn

from ..serving import ServedModels
from ..tuners.listen import ListenLayer


@dataclass(frozen=True)
class Variant:
    """
    What answers a question.

    Args:
        model (`str`): Name of a model of [`~peft_listen.serving.ServedModels`].
        is_on (`bool`, defaults to `True`): Whether its adapter is active.
        prompt_length (`int`, *optional*): Number of prompts, for a LiSTEN adapter. That of the adapter if not given.
    """

    model: str
    is_on: bool = True
    prompt_length: int | None = None


@dataclass(frozen=True)
class Description:
    """
    What a page has to know about a model.

    Attributes:
        has_adapter (`bool`): Whether there is an adapter that can be switched off.
        pool_size (`int`, *optional*): Number of prompts in its pool; `None` without a LiSTEN adapter.
        prompt_length (`int`, *optional*): Number of prompts that it selects.
        trained_lengths (`str`, *optional*): Numbers of prompts in its training, such as `"8"` or `"1 to 16"`.
    """

    has_adapter: bool
    pool_size: int | None = None
    prompt_length: int | None = None
    trained_lengths: str | None = None


def describe(models: ServedModels, name: str) -> Description:
    """Describes a model of some models. Nothing else may use them meanwhile."""
    with active(models, Variant(name)) as layer:
        if layer is None:
            return Description(has_adapter=any(_adapter_modules(models.pipe.model)))
        config = layer.pool_of().config
        longest = config.max_train_prompt_length
        lengths = f"1 to {longest}" if config.stochastic_prompt_length else str(longest)
        return Description(True, config.pool_size, config.prompt_length, lengths)


@contextmanager
def active(models: ServedModels, variant: Variant) -> Iterator[ListenLayer | None]:
    """
    Makes the model that of a variant for a `with` block, of which only one may run at a time.

    Args:
        models ([`~peft_listen.serving.ServedModels`]): The models.
        variant ([`Variant`]): The variant; its number of prompts holds for the current thread.

    Yields:
        [`ListenLayer`], or `None` if no LiSTEN adapter is active.

    Raises:
        ValueError: The number of prompts is not from 1 to that of the pool.
    """
    models.activate(variant.model)
    model = models.pipe.model
    if not variant.is_on:
        with _adapters_off(model):
            yield None
        return
    layer = next((module for module in model.modules() if isinstance(module, ListenLayer)), None)
    if layer is None or layer.active_adapter_name is None:
        yield None
    elif variant.prompt_length is None:
        yield layer
    else:
        with layer.use_prompt_length(variant.prompt_length):
            yield layer


@contextmanager
def _adapters_off(model: nn.Module) -> Iterator[None]:
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            yield
        return
    # transformers' own `enable_adapters` leaves trained copies of modules, such as the projector, switched off.
    modules = list(_adapter_modules(model))
    for module in modules:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in modules:
            module.enable_adapters(True)


def _adapter_modules(model: nn.Module) -> Iterator[BaseTunerLayer | AuxiliaryTrainingWrapper]:
    for module in model.modules():
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            yield module
