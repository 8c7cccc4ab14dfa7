"""The prompt pool of one adapter: keys, values, running statistics and step; selection and key loss."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from . import running_statistics
from .config import ListenConfig
from .deep_values import DeepPrompts, DeepValues
from .initialization import InitialPool
from .prompt_length import train_prompt_length
from .query import NO_GROUPS, TokenGroups, mean_query, prompt_positions
from .running_statistics import StepSums
from .selectors import Selection, get_selector
from .selectors.base import check_initial_keys, check_selection
from .sharding import assign, gathered
from .steps import StepObserver
from .synchronization import reading_is_free
from .text_query import TextQuery


class PoolOutput(NamedTuple):
    """
    Output of [`PromptPool`].

    Attributes:
        prompts (`torch.FloatTensor` of shape `(batch_size, num_shared_prompts + k, embedding_size)`):
            the shared prompts, then the selected ones in the selector's order, in the pool's dtype. Where shared prompts
            are added, of shape `(batch_size, k, embedding_size)`.
        selection ([`Selection`])
        query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`): float32, before centering (of the sum of its
            halves, with `query_layer`).
        key_loss_per_row (`torch.FloatTensor` of shape `(batch_size,)`, *optional*): in training only.
        deep ([`DeepPrompts`], *optional*): deep values of the prompts, for adapters that have them.
    """

    prompts: torch.Tensor
    selection: Selection
    query: torch.Tensor
    key_loss_per_row: torch.Tensor | None
    deep: DeepPrompts | None


# Fields of the configuration that determine of what the running statistics are. Their momentum is not among them: it
# determines how much the next step changes them.
_QUERY_SETTINGS = (
    "backbone",
    "center_queries",
    "standardize_queries",
    "query_pooling",
    "query_ignored_token_ids",
    "query_layer",
    "query_text",
    "query_audio_weight",
    "value_layers",
)


class PromptPool(nn.Module):
    """
    Pool of key-value pairs of one adapter (arXiv 2505.18517), with its running statistics and its step.

    Args:
        config ([`ListenConfig`]): of the adapter. A changed `prompt_length` takes effect in the next forward pass.
        initial ([`InitialPool`]): initial keys, values, shared prompts and query mean.
        device (`torch.device`): device of all tensors.

    Attributes:
        keys, values (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): parameters.
        shared_values (`torch.FloatTensor` of shape `(num_shared_prompts, embedding_size)`, *optional*): parameter.
        query_mean (`torch.FloatTensor` of shape `(embedding_size,)`): running mean of the training queries.
        query_variance (`torch.FloatTensor` of shape `(embedding_size,)`, *optional*): their running variance, for
            adapters that standardize.
        recent_queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`, *optional*): queries for a pending
            initialization of the keys; see [`remember_queries`].
        saved_step (`torch.LongTensor`, a scalar): [`step`] for checkpoints; written in training, read after loading.
        text_query ([`TextQuery`], *optional*): query from a hidden layer, for a configuration with `query_layer`.
        deep ([`DeepValues`], *optional*): the prompts' vectors at deeper layers, for a configuration with `value_layers`.
    """

    keys: nn.Parameter
    values: nn.Parameter
    shared_values: nn.Parameter | None
    query_mean: torch.Tensor
    query_variance: torch.Tensor | None
    recent_queries: torch.Tensor | None
    saved_step: torch.Tensor

    def __init__(self, config: ListenConfig, initial: InitialPool, device: torch.device) -> None:
        super().__init__()
        self.config = config
        self.selector = get_selector(config.selector, **(config.selector_kwargs or {}))
        self.keys = nn.Parameter(initial.keys.to(device))
        self.values = nn.Parameter(initial.values.to(device))
        shared_values = nn.Parameter(initial.shared_values.to(device)) if config.num_shared_prompts > 0 else None
        self.register_parameter("shared_values", shared_values)
        self.deep: DeepValues | None = None
        self.text_query: TextQuery | None = None
        self.register_buffer("query_mean", initial.query_mean.to(device))
        variance = torch.ones_like(initial.query_mean, device=device) if config.standardize_queries else None
        self.register_buffer("query_variance", variance)
        self.register_buffer("recent_queries", None)
        self.register_buffer("saved_step", torch.zeros((), dtype=torch.long, device=device))
        self._step = 0
        self._step_is_read_from: torch.Tensor | None = None
        self._step_is_given = False  # by `begin_step`
        self._sums = StepSums()
        self._observer: StepObserver | None = None  # created by the first forward pass in training
        self._batches_to_check = 16
        self._is_checked = False  # that keys and values are finite
        self.may_be_a_copy = True  # before the tensors are loaded, initialized from queries, or used
        self._warned_of_skipped_rows = False

    def extra_repr(self) -> str:
        return f"pool_size={self.config.pool_size}, embedding_size={len(self.query_mean)}, selector={self.config.selector!r}"

    @property
    def is_training_step(self) -> bool:
        """Whether a forward pass made now belongs to training. Generation inside a training loop runs without gradients,
        and uses the prompt length of evaluation."""
        return self.training and torch.is_grad_enabled()

    # ----------------------------------------------------------------------------------------------- optimizer steps

    @property
    def step(self) -> int:
        """The optimizer step that the next forward pass in training belongs to, from 0."""
        # A Python integer, because reading a buffer synchronizes with the device. The buffer is read only after
        # loading or moving has replaced it.
        if self._step_is_read_from is not self.saved_step:
            self._step = int(self.saved_step)
            self._step_is_read_from = self.saved_step
        return self._step

    def _set_step(self, step: int) -> None:
        self.saved_step.fill_(step)
        self._step = step
        self._step_is_read_from = self.saved_step

    def _load_from_state_dict(
        self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        is_loaded = any(key.startswith(prefix) for key in state_dict)
        if is_loaded:
            # The number of queries is known from the checkpoint only.
            recent_queries = state_dict.get(f"{prefix}recent_queries")
            device = self.query_mean.device
            self.recent_queries = None if recent_queries is None else torch.empty_like(recent_queries, device=device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if is_loaded:
            self._step_is_read_from = None
            self._is_checked = False
            self.may_be_a_copy = False
            if self.deep is not None:
                self.deep.forget_scales()
            if self._observer is not None:
                self._observer.forget_values()
            self.check_finite("loaded")

    def _save_to_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.warn_of_skipped_rows()
        super()._save_to_state_dict(*args, **kwargs)

    def has_parameters_of(self, other: PromptPool) -> bool:
        """Whether all parameters equal those of another pool. Parameters without values (on the meta device, or partitioned
        by ZeRO-3) equal none."""
        others = dict(other.named_parameters())
        return {name for name, _ in self.named_parameters()} == others.keys() and all(
            parameter.numel() > 0
            and parameter.device == others[name].device
            and parameter.device.type != "meta"
            and torch.equal(parameter, others[name])
            for name, parameter in self.named_parameters()
        )

    def has_queries_of(self, other: PromptPool) -> bool:
        """Whether the configuration computes the same queries as that of another pool, so that its statistics apply."""
        return all(getattr(self.config, name) == getattr(other.config, name) for name in _QUERY_SETTINGS)

    @torch.no_grad()
    def take_statistics_of(self, other: PromptPool) -> None:
        """Sets the running statistics and the step to those of a pool with the same queries; see [`has_queries_of`]."""
        others = dict(other.named_buffers())
        for name, buffer in self.named_buffers():
            if name != "recent_queries" and name in others:
                buffer.copy_(others[name])
        self._step_is_read_from = None
        if self.deep is not None:
            self.deep.forget_scales()

    def check_finite(self, purpose: str) -> None:
        """
        Checks that the pool contains no NaN or infinite values: with one in the query mean, every input would select
        the same prompts.

        Args:
            purpose (`str`): the action that fails, for the message: `"saved"`, `"loaded"` or `"used"`.

        Raises:
            ValueError: if it contains one; the message names the tensor.
        """
        for name, tensor in (*self.named_parameters(), *self.named_buffers()):
            local = tensor.to_local() if hasattr(tensor, "to_local") else tensor  # of a DTensor
            if local.device.type != "meta" and local.is_floating_point() and not bool(local.isfinite().all()):
                raise ValueError(
                    f"The prompt pool cannot be {purpose}: `{name}` contains NaN or infinite values. The training has diverged, "
                    "or the checkpoint is damaged. Return to an earlier checkpoint, and lower the learning rate."
                )

    def warn_of_skipped_rows(self) -> None:
        """Warns, once, if queries with NaN or infinite values were left out of the running statistics."""
        if self._warned_of_skipped_rows or self._sums.num_skipped == 0:
            return
        self._warned_of_skipped_rows = True
        warnings.warn(
            f"{self._sums.num_skipped} rows whose embeddings contain NaN or infinite values were excluded from the "
            "running statistics of the queries. Check the inputs: the loss of these rows is not finite either.",
            UserWarning,
            stacklevel=2,
        )

    def begin_step(self, step: int | None) -> None:
        """
        Sets the optimizer step that the next forward passes belong to.

        Args:
            step (`int` or `None`): from 0; `None` returns to counting the steps of the optimizer.
        """
        self._step_is_given = step is not None
        if step is not None and step != self.step:
            self._end_step(step)

    def train(self, mode: bool = True) -> PromptPool:
        """As in `torch.nn.Module`. After a switch to training mode, a new optimizer is expected."""
        if mode and not self.training and self._observer is not None:
            self._observer.expect_new_optimizer()
        if self.training and not mode:
            self.warn_of_skipped_rows()
        super().train(mode)
        return self

    def observe_optimizer(self) -> StepObserver:
        """Begins to observe the optimizer. A copied or loaded pool does so in its first forward pass in training."""
        if self._observer is None:
            self._observer = StepObserver(self.parameters, self._on_optimizer_step)
        return self._observer

    def _count_step(self) -> None:
        has_changed = self.observe_optimizer().has_changed()
        if has_changed and not self._step_is_given:
            self._end_step(self.step + 1)

    def _on_optimizer_step(self) -> None:
        if not self._step_is_given and not self._sums.is_empty:
            self._end_step(self.step + 1)

    def reduce_queries(self) -> None:
        """Adds the queries that other processes have seen in this step. All processes must call it."""
        if running_statistics.is_distributed():
            self._sums.reduce(running_statistics.all_processes(), self.query_mean)
            if self.text_query is not None:
                self.text_query.reduce(running_statistics.all_processes())

    def _reduce_in_backward(self, prompts: torch.Tensor) -> None:
        """Adds the queries of other processes at the end of the backward pass, if they reduce their gradients in it. The
        loss of each of these processes must depend on its prompts."""
        if not running_statistics.is_distributed() or not prompts.requires_grad:
            return
        groups = running_statistics.groups_of_forward()

        def reduce() -> None:
            found = groups or running_statistics.groups_of_backward(self.values)
            if found:
                self._sums.reduce(found, self.query_mean)
                if self.text_query is not None:
                    self.text_query.reduce(found)
                if self.deep is not None:
                    self.deep.reduce_scales(found)

        # At the end, when every process has begun the reductions of its gradients: collectives must be in the same order
        # in all processes.
        def at_end(gradient: torch.Tensor) -> None:
            torch.autograd.Variable._execution_engine.queue_callback(reduce)

        prompts.register_hook(at_end)

    def _end_step(self, next_step: int) -> None:
        """Updates the running statistics with the queries of the step that has ended, and begins `next_step`."""
        self._update_statistics(steps_seen=self.step + 1)
        self._set_step(next_step)

    def _update_statistics(self, steps_seen: int) -> None:
        statistics = self._sums.take()
        if statistics is None:
            return
        rate = max(1.0 / steps_seen, 1.0 - self.config.query_mean_momentum)
        running_statistics.update(self.query_mean, statistics.mean, rate, statistics.num_rows)
        if self.text_query is not None:
            self.text_query.end_step(rate)
        # In the first step, the distances are measured from the initial mean, to which no query has contributed.
        if self.query_variance is not None and steps_seen > 1:
            rate = max(1.0 / (steps_seen - 1), rate)
            running_statistics.update(self.query_variance, statistics.variance, rate, statistics.num_rows)

    # ------------------------------------------------------------------------------------------------------ selection

    def forward(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        query_mask: torch.Tensor | None = None,
        groups: TokenGroups = NO_GROUPS,
        prompt_length: int | None = None,
    ) -> PoolOutput:
        """
        Selects the prompts of each row.

        Args:
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, length, embedding_size)`)
            attention_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*)
            labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): the query ends before them.
            query_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): positions of the query, if given.
            groups ([`TokenGroups`]): positions that the query treats separately.
            prompt_length (`int`, *optional*): number of prompts outside training steps; that of the configuration if not
                given.

        Returns:
            [`PoolOutput`]
        """
        if not self._is_checked:
            # Covers all ways of loading the tensors. Checked only once, because it synchronizes with the device.
            self.check_finite("used")
            self._is_checked = True
        is_training_step = self.is_training_step
        if is_training_step:
            self._count_step()
            k = train_prompt_length(self.config, self.step)
        else:
            k = prompt_length or self.config.prompt_length
        device = inputs_embeds.device
        batch_size, length = inputs_embeds.shape[:2]
        positions, without_prompt = prompt_positions(
            batch_size, length, attention_mask, labels, query_mask, groups.ignored, device=device
        )
        if is_training_step and labels is not None:
            self._warn_without_prompt(without_prompt)
        text = None
        if self.text_query is not None:
            text = self.text_query.read(inputs_embeds, positions, attention_mask, labels, query_mask, groups)
        keys, values = self.keys.to(device), self.values.to(device)
        # In half precision, rounded similarities would select other prompts.
        with torch.autocast(device_type=device.type, enabled=False):
            if self.text_query is None or text is None:
                query = mean_query(inputs_embeds, positions, groups.modality)
            else:
                query = self.text_query.combine(text, inputs_embeds, positions, groups, is_training_step)
            normalized = self.normalize_query(query)
            selection = self.selector.select(normalized, keys.float(), k)
            check_selection(selection, self.selector, batch_size, k, keys, with_range=reading_is_free(device))
            prompts = values[selection.indices]  # [batch, k, d]
            if selection.weights is not None:
                prompts = prompts * selection.weights.unsqueeze(-1)
            if self.shared_values is not None:
                prompts = self._with_shared_prompts(self.shared_values.to(device), prompts)
            deep = None if self.deep is None else self.deep.select(selection, is_training_step)
            key_loss = None
            if is_training_step:
                self._sums.add(query.detach(), self.query_mean.to(query))
                if reading_is_free(device):  # on other devices `train` and `_save_to_state_dict` warn
                    self.warn_of_skipped_rows()
                key_loss = self._key_loss(normalized, keys.float(), selection)
            if torch.is_grad_enabled() and keys.requires_grad:
                # Keeps the keys in the graph of any loss, because DistributedDataParallel requires all parameters in
                # it. The sum over an empty slice is 0 even if the keys contain NaN.
                prompts = prompts + keys[:0].sum()
            if is_training_step:
                self._reduce_in_backward(prompts)
        return PoolOutput(prompts, selection, query, key_loss, deep)

    def normalize_query(self, query: torch.Tensor) -> torch.Tensor:
        """The query after centering and scaling, as configured, `(num_queries, embedding_size)`."""
        if not self.config.center_queries:
            return query
        query = query - self.query_mean.to(query)
        if self.query_variance is None:
            return query
        variance = self.query_variance.to(query)
        # Rescaled to the mean variance of the queries, which is also the scale of the keys.
        return query * (variance.mean() / (variance + 1e-3 * variance.mean())).sqrt()

    def _with_shared_prompts(self, shared: torch.Tensor, selected: torch.Tensor) -> torch.Tensor:
        if not self.config.adds_shared_prompts:
            return torch.cat([shared.expand(selected.shape[0], -1, -1), selected], dim=1)
        # If there are more selected values than shared prompts, the remaining values are unchanged.
        missing = max(0, selected.shape[1] - shared.shape[0])
        return selected + F.pad(shared[: selected.shape[1]], (0, 0, 0, missing))

    def _key_loss(self, query: torch.Tensor, keys: torch.Tensor, selection: Selection) -> torch.Tensor:
        """Distance of each row's query to its own selected keys (arXiv 2505.18517), `(batch_size,)`. Its gradient stops
        at the query (ours): the loss moves the keys, not the audio encoder."""
        distances = torch.linalg.vector_norm(
            query.detach().unsqueeze(1) - keys[selection.indices], dim=-1
        )  # [batch, k]
        return distances.mean(dim=-1) if self.config.key_loss_reduction == "mean" else distances.sum(dim=-1)

    def _warn_without_prompt(self, without_prompt: torch.Tensor) -> None:
        # Labels in the wrong format are found in the first batches; checking every batch would synchronize each time.
        if self._batches_to_check == 0:
            return
        self._batches_to_check -= 1
        if not bool(without_prompt.any()):
            return
        self._batches_to_check = 0
        warnings.warn(
            "The first token of a row is supervised, so the row has no prompt to compute a query from; its first token is "
            "used as the query. For instruction data, set the labels of the prompt to -100 (completion-only or "
            "assistant-only loss); the query is then the mean of audio and instruction, as in LiSTEN.",
            UserWarning,
            stacklevel=2,
        )

    # -------------------------------------------------------------------------------------------------- initialization

    @torch.no_grad()
    def init_keys_from(self, queries: torch.Tensor) -> None:
        """
        Sets the keys to cluster centers of real queries, and the query mean to their mean. If the keys are sharded, all
        processes have to call this method with the same queries.

        Args:
            queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`): before centering.

        Raises:
            ValueError: for another shape, an empty tensor, or NaN or infinite values.
        """
        size, pool_size = len(self.query_mean), self.config.pool_size  # keys that ZeRO-3 has partitioned have no shape
        if queries.ndim != 2 or queries.shape[-1] != size or len(queries) == 0:
            raise ValueError(
                f"`queries` must have the shape (num_queries, {size}) with at least one row, got "
                f"{tuple(queries.shape)}."
            )
        if not bool(queries.isfinite().all()):
            raise ValueError(
                "`queries` contains NaN or infinite values. Remove these rows, and check the inputs that they come from."
            )
        if self._observer is not None:
            with gathered(self.parameters()):
                self._count_step()  # a step since the last forward pass: below, the values that show it change
        # Sorted, so the result does not depend on the number of processes that the queries were gathered from.
        rows, counts = queries.float().unique(dim=0, return_counts=True)
        queries = rows.repeat_interleave(counts, dim=0)
        if self.config.center_queries:
            self.query_mean.copy_(queries.mean(dim=0))
            if self.query_variance is not None and len(queries) > 1:
                self.query_variance.copy_(queries.var(dim=0, correction=0))
            queries = self.normalize_query(queries)
        keys = self.selector.initial_keys(queries, pool_size, seed=self.config.seed)
        check_initial_keys(keys, self.selector, torch.Size((pool_size, size)))
        self._is_checked = False
        self.may_be_a_copy = False
        if self._observer is not None:
            self._observer.forget_values()
        assign(self.keys, keys)

    @torch.no_grad()
    def remember_queries(self, queries: torch.Tensor, maximum: int) -> None:
        """
        Stores queries for a later [`init_keys_from`]. They are saved with the adapter until [`forget_queries`] is
        called.

        Args:
            queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`): of all processes, before centering.
                Rows that hold NaN or infinite values are skipped.
            maximum (`int`): number of queries to store; the oldest are dropped.
        """
        queries = queries[queries.isfinite().all(dim=-1)].to(self.query_mean)
        former = queries[:0] if self.recent_queries is None else self.recent_queries
        self.recent_queries = torch.cat([former, queries])[-maximum:]

    def forget_queries(self) -> None:
        """Drops the queries that [`remember_queries`] has stored."""
        self.recent_queries = None

    def cast_parameters(self, dtype: torch.dtype) -> None:
        """Casts keys, values, shared prompts and deep values. Running statistics keep their dtype, float32."""
        for parameter in self.parameters():
            parameter.data = parameter.data.to(dtype)

    def move(self, device: torch.device) -> None:
        """Moves all tensors to `device`, except those on the meta device, which stay there until they are loaded."""
        self._apply(lambda tensor: tensor if tensor.device.type == "meta" else tensor.to(device))
