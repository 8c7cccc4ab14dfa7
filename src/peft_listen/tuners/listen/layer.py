"""The pool's home on the backbone: holds keys and values, chooses, and reckons the key loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from .config import ListenConfig
from .exploration import exploration_noise
from .pool import initial_pool, reseed_dead_prompts, with_shared_prompts
from .prompt_length import PromptLength
from .query import NO_GROUPS, TokenGroups, drop_positions, mean_query, prompt_positions
from .running_statistics import USAGE_MOMENTUM, StepSums, gather_rows
from .selectors import Selection, get_selector
from .step_random import step_generator


@dataclass(frozen=True)
class SelectionRecord:
    """
    What one prefill chose, detached.

    Attributes:
        indices (`torch.LongTensor` of shape `(batch_size, k)`): the chosen prompts, best first.
        scores (`torch.FloatTensor` of shape `(batch_size, k)`): the selector's score of each.
        weights (`torch.FloatTensor` of shape `(batch_size, k)`, *optional*): factors of the values, if any.
        query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
            mean of the prompt's input embeddings, before centring.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor | None
    query: torch.Tensor


class AdapterState:
    """What an adapter keeps besides its tensors: its selector, its prompt length, and the sums of the running step."""

    def __init__(self, config: ListenConfig) -> None:
        self.config = config
        self.selector = get_selector(config.selector, **(config.selector_kwargs or {}))
        if (config.usage_balance or config.exploration) and not self.selector.takes_bias():
            raise ValueError(
                f"The selector {config.selector!r} takes no `bias`, by which `usage_balance` and `exploration` change "
                "its scores. Set both to 0, or give its `select` an argument `bias`."
            )
        self.prompt_length = PromptLength(config)
        self.sums = StepSums()
        self.step_queries: list[torch.Tensor] = []
        self.forward_passes = 0  # of the running step
        self.values_version: int | None = None
        self.counts_steps = True

    @property
    def tracks_usage(self) -> bool:
        """Whether the running usage of the prompts is needed, and so kept with the adapter."""
        return self.config.usage_balance > 0 or self.config.reseed_every > 0


class ListenLayer(nn.Module, BaseTunerLayer):
    """
    Pool of prompts of one backbone, for any number of adapters.

    It is a child of the backbone, not a wrapper around it, so that module paths stay as they are and other adapters
    still find what lies below.
    """

    adapter_layer_names = ("listen_keys", "listen_values", "listen_shared_values")
    other_param_names = ("listen_query_mean", "listen_query_variance", "listen_usage", "listen_step", "states")

    def __init__(self) -> None:
        super().__init__()
        self.listen_keys = nn.ParameterDict()
        self.listen_values = nn.ParameterDict()
        self.listen_shared_values = nn.ParameterDict()  # of adapters with shared prompts
        self.listen_query_mean = BufferDict(persistent=True)
        self.listen_query_variance = BufferDict(persistent=True)  # of adapters that standardise
        self.listen_usage = BufferDict(persistent=True)  # of adapters that need it; 1 is the average
        self.listen_step = BufferDict(persistent=True)
        self.states: dict[str, AdapterState] = {}
        self.merged_adapters: list[str] = []
        self.last_selection: SelectionRecord | None = None
        self.key_loss_per_row: torch.Tensor | None = None
        self.hooks: Any = None  # set by the tuner: they need the modules around
        self.generation: Any = None
        self._recorders: list[Callable[[SelectionRecord], None]] = []
        self._warned_without_prompt = False

    def update_layer(
        self, adapter_name: str, config: ListenConfig, embedding: nn.Module, model_config: object, trainable: bool
    ) -> None:
        """Adds the pool of one adapter. Its tensors lie on the device of the embeddings, in float32."""
        # Made before anything is stored, so that a refusal leaves no half of an adapter behind.
        state = AdapterState(config)
        pool = initial_pool(config, embedding, model_config)
        weight: torch.Tensor = embedding.weight  # type: ignore[assignment]
        device = weight.device
        device = torch.device("cpu") if device.type == "meta" else device
        self.states[adapter_name] = state
        self.listen_keys[adapter_name] = nn.Parameter(pool.keys.to(device), requires_grad=trainable)
        self.listen_values[adapter_name] = nn.Parameter(pool.values.to(device), requires_grad=trainable)
        if config.num_shared_prompts > 0:
            shared = nn.Parameter(pool.shared_values.to(device), requires_grad=trainable)
            self.listen_shared_values[adapter_name] = shared
        self.listen_query_mean[adapter_name] = pool.query_mean.to(device)
        if config.standardize_queries:
            self.listen_query_variance[adapter_name] = torch.ones_like(pool.query_mean, device=device)
        if state.tracks_usage:
            self.listen_usage[adapter_name] = torch.ones(config.pool_size, device=device)
        self.listen_step[adapter_name] = torch.zeros((), dtype=torch.long, device=device)
        if trainable:
            self.set_adapter(self.active_adapters)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        # PEFT asks for this when weights were loaded into empty ones. The dtype stays: the pool is in float32.
        if device is None:
            device = self.hooks.backbone.get_input_embeddings().weight.device
        if device.type == "meta":
            return
        for pool in (self.listen_keys, self.listen_values, self.listen_shared_values):
            if adapter_name in pool and pool[adapter_name].device.type != "meta":
                parameter = pool[adapter_name]
                pool[adapter_name] = nn.Parameter(parameter.detach().to(device), parameter.requires_grad)
        for buffers in (self.listen_query_mean, self.listen_query_variance, self.listen_usage, self.listen_step):
            if adapter_name in buffers:
                buffers[adapter_name] = buffers[adapter_name].to(device)

    def cast_pool(self, adapter_name: str, dtype: torch.dtype) -> None:
        """Casts an adapter's parameters. What runs along with the training, such as the query mean, stays in float32."""
        for attribute in self.adapter_layer_names:
            pool: nn.ParameterDict = getattr(self, attribute)
            if adapter_name in pool:
                parameter = pool[adapter_name]
                pool[adapter_name] = nn.Parameter(parameter.detach().to(dtype), parameter.requires_grad)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activates an adapter. Only one can be: prompts of several pools have no order among themselves.

        Raises:
            ValueError: if more than one of this layer's adapters is named.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        ours = [name for name in names if name in self.states]
        if len(ours) > 1:
            raise ValueError(f"Only one LISTEN adapter can be active at a time, got {ours}. Activate one of them.")
        super().set_adapter(names, inference_mode=inference_mode)

    @property
    def active_pool(self) -> str | None:
        """Name of the adapter whose prompts are prepended, or `None` if there is none or adapters are disabled."""
        if self.disable_adapters:
            return None
        return next((name for name in self.active_adapters if name in self.states), None)

    def state_of(self, adapter_name: str | None) -> tuple[str, AdapterState]:
        """The named adapter's state, or the active one's.

        Raises:
            ValueError: if there is no such adapter.
        """
        name = adapter_name or next((name for name in self.active_adapters if name in self.states), None)
        if name is None or name not in self.states:
            raise ValueError(f"There is no LISTEN adapter {name!r}; there are {sorted(self.states)}.")
        return name, self.states[name]

    @property
    def is_training_step(self) -> bool:
        """Whether this forward pass belongs to training. Generation inside a training loop runs without gradients, and
        uses the evaluation's prompt length."""
        return self.training and torch.is_grad_enabled()

    # ----------------------------------------------------------------------------------------------- optimizer steps

    def begin_step(self, adapter_name: str, step: int | None) -> None:
        """Tells which optimizer step the coming forward passes belong to; `None` goes back to counting by itself."""
        state = self.states[adapter_name]
        state.counts_steps = step is None
        if step is not None and step != int(self.listen_step[adapter_name]):
            self._end_step(adapter_name)
            self.listen_step[adapter_name].fill_(step)

    def _count_step(self, adapter_name: str) -> None:
        # Every optimizer changes its parameters in place, which torch counts; micro-batches of one step see one count.
        state, values = self.states[adapter_name], self.listen_values[adapter_name]
        if state.counts_steps and state.values_version is not None and values._version != state.values_version:
            self._end_step(adapter_name)
            self.listen_step[adapter_name].add_(1)
        state.values_version = values._version

    @torch.no_grad()
    def _end_step(self, adapter_name: str) -> None:
        """Moves the running statistics, and dead prompts, by what the step that has ended has seen."""
        state = self.states[adapter_name]
        statistics = state.sums.take()
        step_queries, state.step_queries, state.forward_passes = state.step_queries, [], 0
        if statistics is None:
            return
        steps_seen = int(self.listen_step[adapter_name]) + 1
        rate = max(1.0 / steps_seen, 1.0 - state.config.query_mean_momentum)
        mean = self.listen_query_mean[adapter_name]
        mean.lerp_(statistics.mean.to(mean), rate)
        if state.config.standardize_queries:
            variance = self.listen_query_variance[adapter_name]
            # The first step's distances are from a mean that no query had part in.
            if steps_seen > 1:
                variance.lerp_(statistics.variance.to(variance), max(1.0 / (steps_seen - 1), rate))
        if state.tracks_usage:
            usage = self.listen_usage[adapter_name]
            usage.lerp_(statistics.usage.to(usage), 1.0 - USAGE_MOMENTUM)
            if state.config.reseed_every and steps_seen % state.config.reseed_every == 0:
                queries = self.matched_query(adapter_name, gather_rows(torch.cat(step_queries)))
                reseed_dead_prompts(self.listen_keys[adapter_name], self.listen_values[adapter_name], usage, queries)

    # ------------------------------------------------------------------------------------------------------ selection

    def choose(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        query_mask: torch.Tensor | None = None,
        groups: TokenGroups = NO_GROUPS,
    ) -> torch.Tensor:
        """
        Chooses the prompts of each row with the active adapter.

        Args:
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, length, embedding_size)`)
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*)
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): the query ends before them.
            query_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): the query's positions, by name.
            groups ([`TokenGroups`]): positions that the query treats apart.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, num_shared_prompts + k, embedding_size)`, in the pool's dtype:
            the shared prompts, then the chosen ones, in the selector's order. Where shared prompts are added, of shape
            `(batch_size, k, embedding_size)`. Also sets `last_selection` and, in training, `key_loss_per_row`.
        """
        name = self.active_pool
        if name is None:
            raise ValueError("No LISTEN adapter is active.")
        state = self.states[name]
        if self.is_training_step:
            self._count_step(name)
        step = int(self.listen_step[name])
        k = state.prompt_length.at(step, training=self.is_training_step)

        batch_size, length = inputs_embeds.shape[:2]
        positions, without_prompt = prompt_positions(
            batch_size, length, attention_mask, labels, query_mask, groups.ignored, device=inputs_embeds.device
        )
        if labels is not None and self.is_training_step:
            self._warn_without_prompt(without_prompt)
        if self.is_training_step and state.config.query_dropout > 0:
            generator = step_generator("query dropout", state.config.seed, step, state.forward_passes)
            positions = drop_positions(positions, state.config.query_dropout, generator)
        device = inputs_embeds.device
        keys, values = self.listen_keys[name].to(device), self.listen_values[name].to(device)
        # Similarities decide which prompts are chosen; half precision would decide differently.
        with torch.autocast(device_type=device.type, enabled=False):
            query = mean_query(inputs_embeds, positions, groups.modality)
            matched = self.matched_query(name, query)
            bias = self._bias(name, batch_size, device)
            biased = {} if bias is None else {"bias": bias}
            selection = state.selector.select(matched, keys.float(), k, **biased)
            prompts = values[selection.indices]  # [batch, k, d]
            if selection.weights is not None:
                prompts = prompts * selection.weights.unsqueeze(-1)
            if name in self.listen_shared_values:
                shared = self.listen_shared_values[name].to(device)
                prompts = with_shared_prompts(state.config.shared_prompt_mode, shared, prompts)
            if self.is_training_step:
                self._add_to_step(name, query, selection)
                self.key_loss_per_row = self._key_loss(state.config, matched, keys.float(), selection)
            if torch.is_grad_enabled() and keys.requires_grad:
                # Keeps the keys in the graph of any loss: DistributedDataParallel wants every parameter used.
                prompts = prompts + 0.0 * keys.sum()
        self._remember(selection, query)
        return prompts

    def matched_query(self, adapter_name: str, query: torch.Tensor) -> torch.Tensor:
        """The query as the keys see it: centred and standardised if the adapter does so, `(num_queries, d)`."""
        config = self.states[adapter_name].config
        if not config.center_queries:
            return query
        query = query - self.listen_query_mean[adapter_name].to(query)
        if not config.standardize_queries:
            return query
        variance = self.listen_query_variance[adapter_name].to(query)
        # Brought back to the queries' own scale, which is that of the keys too.
        return query * (variance.mean() / (variance + 1e-3 * variance.mean())).sqrt()

    def _bias(self, adapter_name: str, batch_size: int, device: torch.device) -> torch.Tensor | None:
        """What is added to the scores before the choice, `(batch_size or 1, pool_size)`, or `None`."""
        state = self.states[adapter_name]
        config, bias = state.config, None
        if config.usage_balance > 0:
            # Limited, so that a prompt that nobody likes is not forced on all.
            usage = self.listen_usage[adapter_name].to(device)
            bias = config.usage_balance * (1.0 - usage).clamp_min(-1.0).unsqueeze(0)
        if self.is_training_step and config.exploration > 0:
            step = int(self.listen_step[adapter_name])
            noise = exploration_noise(config, step, state.forward_passes, batch_size)
            if noise is not None:
                bias = noise.to(device) if bias is None else bias + noise.to(device)
        return bias

    @staticmethod
    def _key_loss(config: ListenConfig, query: torch.Tensor, keys: torch.Tensor, selection: Selection) -> torch.Tensor:
        """Distance of each row's query to its own chosen keys (arXiv 2505.18517), `(batch_size,)`."""
        if config.detach_query:
            query = query.detach()
        distances = torch.linalg.vector_norm(query.unsqueeze(1) - keys[selection.indices], dim=-1)  # [batch, k]
        return distances.mean(dim=-1) if config.key_loss_reduction == "mean" else distances.sum(dim=-1)

    @torch.no_grad()
    def _add_to_step(self, adapter_name: str, query: torch.Tensor, selection: Selection) -> None:
        state = self.states[adapter_name]
        mean = self.listen_query_mean[adapter_name].to(query)
        state.sums.add(query.detach(), mean, selection.indices, state.config.pool_size)
        state.forward_passes += 1
        if state.config.reseed_every:
            state.step_queries.append(query.detach())

    def _remember(self, selection: Selection, query: torch.Tensor) -> None:
        weights = None if selection.weights is None else selection.weights.detach()
        record = SelectionRecord(selection.indices, selection.scores.detach(), weights, query.detach())
        self.last_selection = record
        for recorder in self._recorders:
            recorder(record)

    def _warn_without_prompt(self, without_prompt: torch.Tensor) -> None:
        if self._warned_without_prompt or not bool(without_prompt.any()):
            return
        self._warned_without_prompt = True
        warnings.warn(
            "The first token of a row is supervised, so the row has no prompt to make a query from; its first token is "
            "the query. For instruction data, set the labels of the prompt to -100 (completion-only or assistant-only "
            "loss): then the query is the mean of audio and instruction, as in LiSTEN.",
            UserWarning,
            stacklevel=2,
        )

    @contextmanager
    def recording(self, recorder: Callable[[SelectionRecord], None]) -> Iterator[None]:
        """Calls `recorder` with the record of every prefill in this block."""
        self._recorders.append(recorder)
        try:
            yield
        finally:
            self._recorders.remove(recorder)

    @contextmanager
    def record_selections(self) -> Iterator[list[SelectionRecord]]:
        """Collects the [`SelectionRecord`] of every prefill in this block, moved to the CPU."""
        records: list[SelectionRecord] = []

        def recorder(record: SelectionRecord) -> None:
            weights = None if record.weights is None else record.weights.cpu()
            query = record.query.float().cpu()
            records.append(SelectionRecord(record.indices.cpu(), record.scores.cpu(), weights, query))

        with self.recording(recorder):
            yield records

    @torch.no_grad()
    def init_keys_from(self, adapter_name: str, queries: torch.Tensor) -> None:
        """Sets the keys to the centres of a k-means clustering of real queries, and the query mean to theirs; see
        [`ListenModel.init_keys_from`]."""
        state = self.states[adapter_name]
        keys, mean = self.listen_keys[adapter_name], self.listen_query_mean[adapter_name]
        if queries.ndim != 2 or queries.shape[-1] != keys.shape[-1] or len(queries) == 0:
            raise ValueError(
                f"`queries` must have the shape (num_queries, {keys.shape[-1]}) with at least one row, got "
                f"{tuple(queries.shape)}."
            )
        if not bool(queries.isfinite().all()):
            raise ValueError("`queries` holds NaN or infinite values; look for broken inputs before clustering.")
        queries = queries.float()
        if state.config.center_queries:
            mean.copy_(queries.mean(dim=0).to(mean))
            if state.config.standardize_queries and len(queries) > 1:
                self.listen_query_variance[adapter_name].copy_(queries.var(dim=0, correction=0).to(mean))
            queries = self.matched_query(adapter_name, queries)
        centers = state.selector.initial_keys(queries, keys.shape[0], seed=state.config.seed)
        keys.copy_(centers.to(keys))

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state["key_loss_per_row"] = None  # carries a graph, which neither pickle nor deepcopy takes
        return state


def find_listen_layer(model: nn.Module) -> ListenLayer:
    """
    The pool's home inside a model, however the adapter came there: a `PeftModel`, a model with `load_adapter` called on
    it, or the model of a pipeline.

    Raises:
        ValueError: if the model has no LISTEN adapter.
    """
    for module in model.modules():
        if isinstance(module, ListenLayer):
            return module
    raise ValueError(
        f"There is no LISTEN adapter in {type(model).__name__}. Make one with `get_peft_model(model, ListenConfig())`, "
        "or load one."
    )
