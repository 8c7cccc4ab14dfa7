"""State of single calls of the model, separate for each thread.

Several threads may call one model at the same time, so no state of a call is stored on a module: it is reachable only
through [`ThreadState`], from the calling thread.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F

from .deep_values import DeepPrompts, PendingDeepValues
from .placement import PromptPlacement
from .query import NO_GROUPS, TokenGroups


@dataclass(frozen=True)
class SelectionRecord:
    """
    Selection of one prefill, detached.

    Attributes:
        indices (`torch.LongTensor` of shape `(batch_size, k)`): the selected prompts, best first.
        scores (`torch.FloatTensor` of shape `(batch_size, k)`): the selector's score of each.
        weights (`torch.FloatTensor` of shape `(batch_size, k)`, *optional*): factors of the values, if any.
        query (`torch.FloatTensor` of shape `(batch_size, embedding_size)`):
            mean of the prompt's input embeddings, before centering; with `query_layer`, the sum of the query's halves.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    weights: torch.Tensor | None
    query: torch.Tensor

    def to_cpu(self) -> SelectionRecord:
        """A copy on the CPU, with the query in float32."""
        weights = None if self.weights is None else self.weights.cpu()
        return SelectionRecord(self.indices.cpu(), self.scores.cpu(), weights, self.query.float().cpu())


@dataclass
class LanguageModelCall:
    """
    One forward pass of the language model, from its first hook to its last.

    Attributes:
        labels (`torch.LongTensor` of shape `(batch_size, length)`, *optional*): targets, -100 where not supervised.
        query_mask (`torch.Tensor` of shape `(batch_size, length)`, *optional*): positions of the query, if given.
        groups ([`TokenGroups`]): positions that the query treats separately.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*): supervised tokens of the whole optimizer step.
        key_loss_per_row (`torch.FloatTensor` of shape `(batch_size,)`, *optional*): set by a prefill in training.
        placement ([`PromptPlacement`], *optional*): position of the prompts in the backbone's input.
        deep ([`PendingDeepValues`], *optional*): the deep values that the layers have yet to add.
        returns_tuple (`bool`): whether the backbone's caller requested a tuple.
        continues_generate (`bool`): whether it continues the sequences of the running `generate`.
        is_backbone_only (`bool`): whether the backbone was called without the language model around it.
        frame (`FrameType`, *optional*): the running frame that makes the call.
    """

    labels: torch.Tensor | None = None
    query_mask: torch.Tensor | None = None
    groups: TokenGroups = NO_GROUPS
    num_items_in_batch: Any = None
    key_loss_per_row: torch.Tensor | None = None
    placement: PromptPlacement | None = None
    deep: PendingDeepValues | None = None
    returns_tuple: bool = False
    is_backbone_only: bool = False
    continues_generate: bool = False
    frame: FrameType | None = None

    @property
    def is_running(self) -> bool:
        """Whether the call has not ended. torch runs no hook when a `KeyboardInterrupt` or another exception outside
        `Exception` ends a forward pass, so the call looks for the frame that made it among those of this thread."""
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and frame is not self.frame:
            frame = frame.f_back
        return frame is not None


@dataclass
class GenerateCall:
    """
    One call of `generate`, with all of its forward passes.

    Attributes:
        query_mask (`torch.BoolTensor` of shape `(batch_size, length)`, *optional*):
            Positions of the query. Positions after `length` are generated tokens and never part of the query.
        prompts (`torch.FloatTensor` of shape `(batch_size, k, embedding_size)`, *optional*):
            The prompts, once they are selected; `generate` without a cache repeats the prefill for each token.
        deep ([`DeepPrompts`], *optional*): the deep values of these prompts.
        prompts_are_inserted (`bool`):
            Whether the inputs of `generate` already contain the prompts, in which case the hooks do not change them.
        placement ([`PromptPlacement`], *optional*):
            If the prompts are inserted: their position in the prefill, to strip them from its output.
        marked_caches (`list`): if the prompts are inserted: the caches of this call, marked for the hooks.
        prepared (`tuple`): input and cache of the next forward pass, once `generate` has prepared them.
        has_begun (`bool`): whether `generate` has made a forward pass.
    """

    query_mask: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    deep: DeepPrompts | None = None
    prompts_are_inserted: bool = False
    placement: PromptPlacement | None = None
    marked_caches: list[Any] = field(default_factory=list)
    prepared: tuple[Any, ...] = ()
    has_begun: bool = False

    def prepare(self, inputs: Mapping[str, Any], cache_name: str) -> None:
        """
        Stores the inputs of the next forward pass.

        Args:
            inputs (`Mapping`): the arguments of the model, as `prepare_inputs_for_generation` has returned them.
            cache_name (`str`): the name of the cache among them.
        """
        self.prepared = _identifying(inputs, cache_name)

    def owns(self, inputs: Mapping[str, Any], cache_name: str) -> bool:
        """
        Whether a forward pass inside this `generate` is the one that `generate` has prepared. Streamers and logits
        processors may call the model with other inputs in between, such as the negative prompt of classifier-free
        guidance.

        Args:
            inputs (`Mapping`): the arguments of the forward pass.
            cache_name (`str`): the name of the cache among them.
        """
        found = _identifying(inputs, cache_name)
        # Compared by identity: another call may have an input of the same values, and no mask of the query.
        if not self.prepared or any(a is not b for a, b in zip(found, self.prepared, strict=True)):
            return False
        self.prepared = ()
        self.has_begun = True
        return True

    def query_mask_for(self, batch_size: int, length: int) -> torch.Tensor | None:
        """The query's positions in an input of this shape: rows repeated for beams, generated tokens excluded."""
        if self.query_mask is None:
            return None
        mask = repeat_rows(self.query_mask, batch_size)[:, :length]
        return F.pad(mask, (0, length - mask.shape[1]), value=False)


class ThreadState(threading.local):
    """
    Calls and results of the current thread, for one model. Each thread has its own values.

    Attributes:
        call ([`LanguageModelCall`], *optional*): the forward pass that is running.
        generate_call ([`GenerateCall`], *optional*): the `generate` that is running.
        captures_backbone_call (`bool`): whether the forward pass that is running stops before the backbone.
        key_loss_per_row (`torch.FloatTensor` of shape `(batch_size,)`, *optional*):
            result of the last forward pass in training, with its graph.
        last_selection ([`SelectionRecord`], *optional*): result of the last prefill.
        recorders (`tuple`): functions that are called with the record of every prefill.
        key_loss_receiver (`Callable`, *optional*): function that is called with the key loss per row of every forward pass
            whose `outputs.loss` is not read, as by TRL's trainers of preferences.
        prompt_lengths (`dict[str, int]`): prompt lengths of `use_prompt_length`, by adapter name.
    """

    call: LanguageModelCall | None = None
    generate_call: GenerateCall | None = None
    captures_backbone_call: bool = False
    key_loss_per_row: torch.Tensor | None = None
    last_selection: SelectionRecord | None = None
    recorders: tuple[Callable[[SelectionRecord], None], ...] = ()
    key_loss_receiver: Callable[[torch.Tensor], None] | None = None

    def __init__(self) -> None:  # called once in each thread
        self.prompt_lengths: dict[str, int] = {}

    def __reduce__(self) -> tuple[type[ThreadState], tuple[()]]:
        return ThreadState, ()  # a copied or unpickled model starts without calls


def repeat_rows(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Repeats each row for its beams or return sequences, as `generate` does."""
    return tensor if len(tensor) == batch_size else tensor.repeat_interleave(batch_size // len(tensor), dim=0)


def _identifying(inputs: Mapping[str, Any], cache_name: str) -> tuple[Any, ...]:
    return tuple(inputs.get(name) for name in ("input_ids", "inputs_embeds", cache_name))
