"""Prepends the chosen prompts before the backbone runs, and strips them from what it returns.

`generate`, a `forward` without task type, and trainers that patch the causal language model all bypass
`ListenModel.forward`; the backbone is on every path. So the prompts enter by hooks:

1. Before the causal language model: labels and query mask are noted, since they do not reach the backbone.
2. Before the backbone, with an empty cache: choose, prepend, extend the mask, shift the positions.
3. Before the backbone, with a filled cache (a decoding step): extend the mask, shift the positions.
4. After the backbone: strip the prompts, so that logits and hidden states have the input's length.
5. After the causal language model, in training: add the key loss to the loss.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers.utils import ModelOutput

from .layer import ListenLayer
from .placement import PromptPlacement, positions_from_mask


# Set on a cache that was filled behind prompts.
CACHE_ATTRIBUTE = "listen_prompt_length"

_PACKED_ARGUMENTS = ("cu_seq_lens_q", "cu_seq_lens_k", "seq_idx")


class PromptHooks:
    """
    The hooks of one backbone.

    Args:
        layer ([`ListenLayer`]): chooses the prompts.
        backbone (`nn.Module`): takes `inputs_embeds`, returns `last_hidden_state`.
        language_model (`nn.Module`): the model around it that takes `labels`.
    """

    def __init__(self, layer: ListenLayer, backbone: nn.Module, language_model: nn.Module) -> None:
        self.layer = layer
        self.resting = False
        self._backbone_arguments = list(inspect.signature(backbone.forward).parameters)
        self._language_model_arguments = list(inspect.signature(language_model.forward).parameters)
        self._labels: Optional[torch.Tensor] = None
        self._query_mask: Optional[torch.Tensor] = None
        self._num_items_in_batch: Any = None
        self._placement: Optional[PromptPlacement] = None
        self._wants_tuple = False
        self._handles: list[RemovableHandle] = [
            language_model.register_forward_pre_hook(self.before_language_model, with_kwargs=True),
            backbone.register_forward_pre_hook(self.before_backbone, with_kwargs=True),
            backbone.register_forward_hook(self.after_backbone, always_call=True),
            language_model.register_forward_hook(self.after_language_model, always_call=True),
        ]

    def remove(self) -> None:
        """Takes the hooks off both modules."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # ---------------------------------------------------------------------------------------------- language model

    def before_language_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Optional[tuple[tuple[Any, ...], dict[str, Any]]]:
        named = _by_name(self._language_model_arguments, args, kwargs)
        self._labels = named.get("labels")
        self._num_items_in_batch = named.get("num_items_in_batch")
        self.layer.key_loss_per_row = None
        if "listen_query_mask" not in kwargs:
            return None
        kwargs = dict(kwargs)
        self._query_mask = kwargs.pop("listen_query_mask")
        return args, kwargs

    def after_language_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        labels, num_items, per_row = self._labels, self._num_items_in_batch, self.layer.key_loss_per_row
        self._labels = self._query_mask = self._num_items_in_batch = None
        name = self.layer.active_pool
        if output is None or labels is None or per_row is None or name is None or self.resting:
            return output
        weighted = self.layer.states[name].config.key_loss_weight * batch_key_loss(per_row, labels, num_items)
        if isinstance(output, ModelOutput) and output.get("loss") is not None:
            output["loss"] = output["loss"] + weighted.to(output["loss"])
        elif isinstance(output, tuple) and output and torch.is_tensor(output[0]) and output[0].ndim == 0:
            output = (output[0] + weighted.to(output[0]), *output[1:])
        return output

    # ---------------------------------------------------------------------------------------------------- backbone

    def before_backbone(
        self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Optional[tuple[tuple[Any, ...], dict[str, Any]]]:
        self._placement = None
        if self.resting:
            return None
        call = _by_name(self._backbone_arguments, args, kwargs)
        cache = call.get("past_key_values")
        past_length = 0 if cache is None else int(cache.get_seq_length())
        if self.layer.active_pool is None:
            if past_length > 0 and getattr(cache, CACHE_ATTRIBUTE, 0):
                raise ValueError(
                    "The cache was filled while the LISTEN adapter was on, and the adapter is off now. Start from an "
                    "empty cache, or turn the adapter on again."
                )
            return None
        _refuse_unsupported(call, past_length)
        if past_length == 0:
            self._prefill(backbone, call)
        else:
            self._continue(call, cache, past_length)
        return (), call

    def _prefill(self, backbone: nn.Module, call: dict[str, Any]) -> None:
        inputs_embeds = call.get("inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = backbone.get_input_embeddings()(call["input_ids"])  # type: ignore[operator]
        call["input_ids"] = None
        attention_mask, position_ids = call.get("attention_mask"), call.get("position_ids")
        prompts = self.layer.choose(inputs_embeds, attention_mask, self._labels, self._query_mask)
        placement = PromptPlacement(prompts.shape[1], attention_mask)
        call["inputs_embeds"] = placement.insert_embeds(inputs_embeds, prompts)
        if attention_mask is not None:
            call["attention_mask"] = placement.insert_mask(attention_mask)
        if position_ids is not None:
            call["position_ids"] = placement.insert_positions(position_ids)
        elif attention_mask is not None and "position_ids" in self._backbone_arguments:
            call["position_ids"] = positions_from_mask(call["attention_mask"])
        self._placement = placement
        # Stripping needs names; a caller who wants a tuple gets one afterwards.
        return_dict = call.get("return_dict")
        self._wants_tuple = not (getattr(backbone.config, "return_dict", True) if return_dict is None else return_dict)
        if self._wants_tuple:
            call["return_dict"] = True

    def _continue(self, call: dict[str, Any], cache: Any, past_length: int) -> None:
        prompt_length = getattr(cache, CACHE_ATTRIBUTE, 0)
        if prompt_length == 0:
            raise ValueError(
                "The cache was filled while the LISTEN adapter was off, and the adapter is on now. Start from an empty "
                "cache, so that prompts are chosen and prepended."
            )
        new_tokens = call["input_ids"] if call.get("inputs_embeds") is None else call["inputs_embeds"]
        length = new_tokens.shape[1]
        attention_mask, position_ids = call.get("attention_mask"), call.get("position_ids")
        if attention_mask is not None:
            if attention_mask.shape[1] + prompt_length != past_length + length:
                raise ValueError(
                    f"The attention mask covers {attention_mask.shape[1]} positions, but the cache holds "
                    f"{past_length - prompt_length} tokens (and {prompt_length} prompts, which the mask must not "
                    f"count) and {length} are new. Pass a mask over all tokens, cached and new."
                )
            placement = PromptPlacement(prompt_length, attention_mask)
            attention_mask = call["attention_mask"] = placement.insert_mask(attention_mask)
        if position_ids is not None:
            call["position_ids"] = position_ids + prompt_length
        elif attention_mask is not None and "position_ids" in self._backbone_arguments:
            call["position_ids"] = positions_from_mask(attention_mask)[:, -length:]

    def after_backbone(self, backbone: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        placement, self._placement = self._placement, None
        if placement is None or output is None:
            return output
        output["last_hidden_state"] = placement.strip(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(placement.strip(hidden_states) for hidden_states in output["hidden_states"])
        if output.get("attentions") is not None:
            # Rows are the input's positions; the columns keep the prompts, whose share is then readable.
            output["attentions"] = tuple(
                placement.strip(attention.transpose(1, 2)).transpose(1, 2) for attention in output["attentions"]
            )
        cache = output.get("past_key_values")
        if cache is not None:
            setattr(cache, CACHE_ATTRIBUTE, placement.prompt_length)
        return output.to_tuple() if self._wants_tuple else output


def batch_key_loss(per_row: torch.Tensor, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """
    Key loss of a batch, before its weight.

    Alone, it is the mean over rows (arXiv 2505.18517). When a trainer divides the token losses by the number of
    supervised tokens of all micro-batches and ranks, a row counts by its share of these, so that cutting a batch into
    micro-batches leaves the gradient as it is.

    Args:
        per_row (`torch.FloatTensor` of shape `(batch_size,)`): key loss of each row.
        labels (`torch.LongTensor` of shape `(batch_size, length)`): -100 where nothing is supervised.
        num_items_in_batch (`int` or `torch.Tensor`, *optional*): supervised tokens of the whole optimizer step.

    Returns:
        `torch.FloatTensor`, a scalar.
    """
    if num_items_in_batch is None:
        return per_row.mean()
    supervised = (labels[:, 1:] != -100).sum(dim=-1).to(per_row)  # the first token is never a target
    if torch.is_tensor(num_items_in_batch):
        num_items_in_batch = num_items_in_batch.to(per_row.device)
    return (per_row * supervised).sum() / num_items_in_batch


def _by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _refuse_unsupported(call: dict[str, Any], past_length: int) -> None:
    for argument in _PACKED_ARGUMENTS:
        if call.get(argument) is not None:
            raise ValueError(
                f"LISTEN does not support packed sequences (`{argument}` was given): every document needs prompts of "
                "its own. Turn packing off."
            )
    attention_mask, position_ids = call.get("attention_mask"), call.get("position_ids")
    if attention_mask is not None and not (torch.is_tensor(attention_mask) and attention_mask.ndim == 2):
        kind = f"{attention_mask.ndim}-dimensional" if torch.is_tensor(attention_mask) else type(attention_mask).__name__
        raise ValueError(
            f"LISTEN needs the attention mask of shape (batch_size, sequence_length) to extend it over the prompts, and "
            f"got a prepared one ({kind}). If it comes from `generate` with a static cache, call `generate` on the "
            "PeftModel; otherwise pass the two-dimensional mask."
        )
    if attention_mask is None and position_ids is not None and past_length == 0 and position_ids.ndim == 2:
        if bool((position_ids.diff(dim=-1) != 1).any()):
            raise ValueError(
                "LISTEN does not support packed sequences (`position_ids` start again within a row): every document "
                "needs prompts of its own. Turn packing off."
            )
