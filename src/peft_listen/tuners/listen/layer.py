"""Adapter layer attached to the decoder: contains the prompt pools and selects prompts from the active one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .calls import SelectionRecord, ThreadState
from .config import ListenConfig, check_prompt_length
from .deep_values import DeepValues
from .initialization import initial_pool
from .pool import PoolOutput, PromptPool
from .prompt_length import train_prompt_length, warn_of_other_lengths_in_training, warn_of_untrained_length
from .query import NO_GROUPS, TokenGroups
from .text_query import TextQuery


class Attachment(Protocol):
    """An object that was attached to the model together with the layer."""

    def remove(self) -> None:
        """Detaches it."""


class BackboneHooks(Attachment, Protocol):
    """The part of the backbone's hooks that the layer uses."""

    backbone: nn.Module
    language_model: nn.Module

    def selection_for(self, **inputs: Any) -> PoolOutput:
        """The selection for these inputs of the language model, without running the backbone."""
        ...

    def update_layers(self) -> None:
        """Connects the pools with the decoder layers that they need."""
        ...


class Generation(Attachment, Protocol):
    """The part of the wrapped `generate` that the layer uses."""

    def prompt_embeds(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """The embeddings that `generate` gives to the language model."""
        ...


class ListenLayer(nn.Module, BaseTunerLayer):
    """
    Prompt pools of one decoder, one for each adapter.

    It is a child of the decoder, not a wrapper around it, so module paths do not change, and other adapters still find
    the decoder's modules.

    Attributes:
        listen_pools (`nn.ModuleDict` of [`PromptPool`]): by adapter name.
        thread ([`ThreadState`]): calls and results of the current thread.
        trained_adapter (`str`, *optional*): the adapter that the last training step belongs to; before the first step, the
            first one that was added for training.
        hooks, generation, query_loading: the hooks on the backbone, and the wrapped `generate` and loading of the model.
            They are stored in the layer because transformers' `load_adapter` discards the tuner.
    """

    adapter_layer_names = ("listen_pools",)
    other_param_names = ()

    def __init__(self) -> None:
        super().__init__()
        self.listen_pools = nn.ModuleDict()
        self.merged_adapters: list[str] = []
        self.thread = ThreadState()
        self.trained_adapter: str | None = None
        self.hooks: BackboneHooks | None = None
        self.generation: Generation | None = None
        self.query_loading: Attachment | None = None

    def update_layer(
        self, adapter_name: str, config: ListenConfig, embedding: nn.Module, model_config: object, trainable: bool
    ) -> None:
        """Adds the pool of one adapter, in float32, on the device of the embeddings."""
        weight: torch.Tensor = embedding.weight  # type: ignore[assignment]
        device = torch.device("cpu") if weight.device.type == "meta" else weight.device
        pool = PromptPool(config, initial_pool(config, embedding, model_config), device)
        if config.value_layers:
            pool.deep = DeepValues(pool, config, model_config, device)
        if config.query_layer:
            pool.text_query = TextQuery(pool, config, pool.keys.shape[-1], device)
            pool.query_mean.zero_()  # the initial one is that of embeddings
        pool.requires_grad_(trainable)
        pool.train(self.training)
        self.listen_pools[adapter_name] = pool
        if trainable:
            pool.observe_optimizer()
            self.trained_adapter = self.trained_adapter or adapter_name
            self.set_adapter(self.active_adapters)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT calls this after it has loaded weights into an adapter on the meta device. The dtype does not change:
        # the pool is in float32.
        if device is None and self.hooks is not None:
            device = self.hooks.backbone.get_input_embeddings().weight.device  # type: ignore[operator]
        if device is not None and device.type != "meta" and adapter_name in self.listen_pools:
            self.pool_of(adapter_name).move(device)

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if any(key.startswith((f"{prefix}listen_keys.", f"{prefix}listen_values.")) for key in state_dict):
            raise ValueError(
                "The adapter was saved by an early version of peft-listen, and its tensors have other names now. Load and "
                "save it once with peft 0.21 or later, which renames them."
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def detach(self) -> None:
        """Removes the hooks and the wrapped methods from the model."""
        for attachment in (self.hooks, self.generation, self.query_loading):
            if attachment is not None:
                attachment.remove()

    def delete_adapter(self, adapter_name: str) -> None:
        """Deletes the pool of an adapter, and activates another one if it was active."""
        super().delete_adapter(adapter_name)
        if self.trained_adapter == adapter_name:
            self.trained_adapter = None
        if self.hooks is not None:
            self.hooks.update_layers()

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activates an adapter. Only one can be active, because the prompts of several pools have no defined order.

        Raises:
            ValueError: if more than one of this layer's adapters is named.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        ours = [name for name in names if name in self.listen_pools]
        if len(ours) > 1:
            raise ValueError(f"Only one LiSTEN adapter can be active at a time, got {ours}. Activate one of them.")
        super().set_adapter(names, inference_mode=inference_mode)

    @property
    def active_adapter_name(self) -> str | None:
        """Name of the adapter whose prompts are prepended, or `None` if there is none or adapters are disabled."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.listen_pools), None)

    @property
    def active_pool(self) -> PromptPool | None:
        """Pool of the adapter whose prompts are prepended, or `None` if there is none or adapters are disabled."""
        name = self.active_adapter_name
        return None if name is None else self.pool_of(name)

    def resolve_adapter(self, adapter_name: str | None) -> str:
        """The given name, or that of the active adapter, whether or not adapters are enabled.

        Raises:
            ValueError: if there is no such adapter.
        """
        name = adapter_name or next((name for name in self.active_adapters if name in self.listen_pools), None)
        if name is None or name not in self.listen_pools:
            raise ValueError(f"There is no LiSTEN adapter {name!r}; there are {sorted(self.listen_pools)}.")
        return name

    def pool_of(self, adapter_name: str | None = None) -> PromptPool:
        """The pool of an adapter; of the active one if no name is given.

        Raises:
            ValueError: if there is no such adapter.
        """
        pool: PromptPool = self.listen_pools[self.resolve_adapter(adapter_name)]  # type: ignore[assignment]
        return pool

    def ready_pool(self, adapter_name: str) -> PromptPool:
        """
        The pool of an adapter, before its tensors are used.

        Trainers of preferences make a reference adapter: they add one, and copy the parameters of the trained adapter into
        it, but not its running statistics, on which the selection depends too. A new pool whose parameters equal those
        of another one, and whose queries are computed in the same way, is therefore taken for a copy, and gets these
        statistics.
        """
        pool = self.pool_of(adapter_name)
        if pool.may_be_a_copy:
            pool.may_be_a_copy = False
            for name in self.listen_pools:
                other = self.pool_of(name)
                if other is not pool and pool.has_queries_of(other) and pool.has_parameters_of(other):
                    pool.take_statistics_of(other)
                    break
        return pool

    @property
    def num_prompts(self) -> int:
        """Number of prompts that a row gets outside training, shared ones included; 0 if no adapter is active."""
        name = self.active_adapter_name
        if name is None:
            return 0
        config = self.pool_of(name).config
        selected = self.thread.prompt_lengths.get(name, config.prompt_length)
        return selected if config.adds_shared_prompts else selected + config.num_shared_prompts

    def select(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        query_mask: torch.Tensor | None = None,
        groups: TokenGroups = NO_GROUPS,
        is_comparison: bool = False,
    ) -> PoolOutput:
        """
        Selects the prompts of each row with the active adapter, and records the selection.

        Args:
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, length, embedding_size)`)
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*)
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): the query ends before them.
            query_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): positions of the query, if given.
            groups ([`TokenGroups`]): positions that the query treats separately.
            is_comparison (`bool`, defaults to `False`): whether the outputs are compared with those of a training step, as
                those of a reference model are. The number of prompts is then that of the step.

        Returns:
            [`PoolOutput`]

        Raises:
            ValueError: if no adapter is active.
        """
        name, thread = self.active_adapter_name, self.thread
        if name is None:
            raise ValueError("No LiSTEN adapter is active.")
        pool = self.ready_pool(name)
        if pool.is_training_step:
            self.trained_adapter = name
        prompt_length = thread.prompt_lengths.get(name)
        if prompt_length is None and is_comparison:
            prompt_length = train_prompt_length(pool.config, self.pool_of(self.trained_adapter or name).step)
        output: PoolOutput = pool(inputs_embeds, attention_mask, labels, query_mask, groups, prompt_length)
        selection = output.selection
        weights = None if selection.weights is None else selection.weights.detach()
        record = SelectionRecord(selection.indices, selection.scores.detach(), weights, output.query.detach())
        thread.last_selection = record
        for recorder in thread.recorders:
            recorder(record)
        return output

    def prompt_embeds(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """What `generate` gives to the language model; see [`ListenModel.prompt_embeds`]."""
        if self.generation is None:
            raise ValueError(
                "This model does not generate text, so there are no embeddings that it would generate from."
            )
        return self.generation.prompt_embeds(**inputs)

    def set_prompt_length(self, prompt_length: int, adapter_name: str | None = None) -> None:
        """Sets the number of prompts used in evaluation and generation; see [`ListenModel.set_prompt_length`]."""
        pool = self.pool_of(adapter_name)
        config = pool.config
        check_prompt_length("prompt_length", prompt_length, config.pool_size)
        changed = copy(config)
        changed.prompt_length = prompt_length
        if pool.step > 0:
            warn_of_untrained_length(changed, prompt_length)
        else:
            if not changed.stochastic_prompt_length:
                changed.max_train_prompt_length = prompt_length
            if not changed.inference_mode:
                changed.check_enough_shared_prompts()
                warn_of_other_lengths_in_training(changed)
        config.prompt_length, config.max_train_prompt_length = changed.prompt_length, changed.max_train_prompt_length

    @contextmanager
    def use_prompt_length(self, prompt_length: int, adapter_name: str | None = None) -> Iterator[None]:
        """[`set_prompt_length`] for the current thread and the duration of a `with` block."""
        name = self.resolve_adapter(adapter_name)
        check_prompt_length("prompt_length", prompt_length, self.pool_of(name).config.pool_size)
        lengths = self.thread.prompt_lengths
        before = lengths.get(name)
        lengths[name] = prompt_length
        try:
            yield
        finally:
            if before is None:
                lengths.pop(name, None)
            else:
                lengths[name] = before

    @contextmanager
    def recording(self, recorder: Callable[[SelectionRecord], None]) -> Iterator[None]:
        """Calls `recorder` with the record of every prefill that the current thread makes in this block."""
        thread = self.thread
        thread.recorders = (*thread.recorders, recorder)
        try:
            yield
        finally:
            remaining = list(thread.recorders)
            remaining.remove(recorder)
            thread.recorders = tuple(remaining)

    @contextmanager
    def receiving_key_loss(self, receiver: Callable[[torch.Tensor], None]) -> Iterator[None]:
        """Calls `receiver` with the key loss per row, unweighted and with its graph, of every forward pass of the current
        thread in this block whose `outputs.loss` is not read."""
        thread = self.thread
        before, thread.key_loss_receiver = thread.key_loss_receiver, receiver
        try:
            yield
        finally:
            thread.key_loss_receiver = before

    @contextmanager
    def record_selections(self) -> Iterator[list[SelectionRecord]]:
        """Collects the [`SelectionRecord`] of every prefill that the current thread makes in this block, on the CPU."""
        records: list[SelectionRecord] = []
        with self.recording(lambda record: records.append(record.to_cpu())):
            yield records


def find_listen_layer(model: nn.Module) -> ListenLayer:
    """
    The LiSTEN layer of a model, no matter how the adapter was added: a `PeftModel`, a model whose `load_adapter` was
    called, or the model of a pipeline.

    Raises:
        ValueError: if the model has no LiSTEN adapter.
    """
    for module in model.modules():
        if isinstance(module, ListenLayer):
            return module
    raise ValueError(
        f"There is no LiSTEN adapter in {type(model).__name__}. Create one with `get_peft_model(model, ListenConfig())`, "
        "or load one."
    )
