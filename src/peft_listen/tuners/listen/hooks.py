"""Prepends the chosen prompts before the backbone runs, and strips them from what it returns.

`generate`, a `forward` without task type, and trainers that patch the causal language model all bypass
`ListenModel.forward`; the backbone is on every path. So the prompts enter by hooks:

1. Before the causal language model: labels and query mask are noted, since they do not reach the backbone.
2. Before the backbone, with an empty cache: choose, prepend, extend the mask, shift the positions.
3. Before the backbone, with a filled cache (a decoding step): extend the mask, shift the positions.
4. After the backbone: strip the prompts, so that logits and hidden states have the input's length.
5. After the causal language model, in training: add the key loss to the loss.

`torch.compile` leaves all of this to Python and compiles what runs between the hooks: how many prompts there are is
known outside the graph only, where it is one more dynamic length. Where nothing is to be done, in a `generate` whose
inputs hold the prompts already, the hooks are no break in the graph either.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from .key_loss import add_key_loss
from .layer import ListenLayer
from .placement import PromptPlacement, positions_from_mask
from .query import NO_GROUPS, TokenGroups, placeholder_token_ids, token_positions
from .unsupported import refuse_cache_of_other_state, refuse_unsupported


# Set on a cache that was filled behind prompts.
CACHE_ATTRIBUTE = "listen_prompt_length"

# What the backbone takes per position and the hooks place one by one.
_PLACED_ARGUMENTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


@dataclass
class GenerationState:
    """
    What the hooks know of a running `generate`.

    Attributes:
        query_mask (`torch.BoolTensor` of shape `(batch_size, length)`):
            Positions of the query. Whatever comes behind `length` was generated, and never is in the query.
        prompts (`torch.FloatTensor` of shape `(batch_size, k, embedding_size)`, *optional*):
            The prompts, once they are chosen; `generate` without a cache sends the prefill again for each token.
        are_inserted (`bool`):
            Whether `generate` got inputs that hold the prompts already; then the hooks leave the inputs alone.
        placement ([`PromptPlacement`], *optional*):
            With `are_inserted`: where they are in the prefill, to strip them from its output.
    """

    query_mask: torch.Tensor | None = None
    prompts: torch.Tensor | None = None
    are_inserted: bool = False
    placement: PromptPlacement | None = None

    def query_mask_for(self, batch_size: int, length: int) -> torch.Tensor | None:
        """The query's positions in an input with this shape: rows repeated for beams, generated tokens left out."""
        if self.query_mask is None:
            return None
        mask = repeat_rows(self.query_mask, batch_size)[:, :length]
        return F.pad(mask, (0, length - mask.shape[1]), value=False)


class _CallCapturedError(Exception):
    """Carries the backbone's arguments out of a forward pass that is to stop there."""

    def __init__(self, call: dict[str, Any], groups: TokenGroups) -> None:
        super().__init__()
        self.call = call
        self.groups = groups


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
        self.backbone = backbone
        self.language_model = language_model
        self.generation: GenerationState | None = None
        self._backbone_arguments = list(inspect.signature(backbone.forward).parameters)
        self._language_model_arguments = list(inspect.signature(language_model.forward).parameters)
        self._labels: torch.Tensor | None = None
        self._query_mask: torch.Tensor | None = None
        self._groups = NO_GROUPS
        self._num_items_in_batch: Any = None
        self._placement: PromptPlacement | None = None
        self._wants_tuple = False
        self._captures = False
        self._warned_without_labels = False
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

    @contextmanager
    def generating(self, state: GenerationState) -> Iterator[None]:
        """Lets the hooks know that the forward passes of this block belong to one `generate`."""
        before, self.generation = self.generation, state
        try:
            yield
        finally:
            self.generation = before

    def backbone_inputs(self, **inputs: Any) -> tuple[dict[str, Any], TokenGroups]:
        """
        What the backbone would get for these inputs of the language model: `inputs_embeds` with audio and images in
        their places, `attention_mask`, `position_ids` and so on; and the positions that the query treats apart. The
        backbone itself does not run.
        """
        self._captures = True
        try:
            self.language_model(**inputs, use_cache=False)
        except _CallCapturedError as captured:
            return captured.call, captured.groups
        finally:
            self._captures = False
        raise RuntimeError(f"{type(self.language_model).__name__} did not call its backbone.")

    # ---------------------------------------------------------------------------------------------- language model

    def before_language_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self._rests else self._note_labels(args, kwargs)

    @property
    def _rests(self) -> bool:
        return self.generation is not None and self.generation.are_inserted and not self._captures

    @torch.compiler.disable
    def _note_labels(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        named = _by_name(self._language_model_arguments, args, kwargs)
        self._labels = named.get("labels")
        if self._labels is None and torch.is_tensor(shift_labels := named.get("shift_labels")):
            self._labels = F.pad(shift_labels[:, :-1], (1, 0), value=-100)
        self._num_items_in_batch = named.get("num_items_in_batch")
        self._groups = self._token_groups(named)
        self.layer.key_loss_per_row = None
        if "listen_query_mask" not in kwargs:
            self._warn_without_labels()
            return None
        kwargs = dict(kwargs)
        self._query_mask = kwargs.pop("listen_query_mask")
        return args, kwargs

    def _token_groups(self, named: dict[str, Any]) -> TokenGroups:
        name = self.layer.active_pool
        cache = named.get("past_key_values")
        if name is None or (cache is not None and int(cache.get_seq_length()) > 0):
            return NO_GROUPS
        config = self.layer.states[name].config
        input_ids, inputs_embeds = named.get("input_ids"), named.get("inputs_embeds")
        embedding = self.backbone.get_input_embeddings()  # type: ignore[operator]
        ignored = modality = None
        if config.query_ignored_token_ids:
            ignored = token_positions(config.query_ignored_token_ids, embedding, input_ids, inputs_embeds)
        if config.query_pooling == "modality_mean":
            placeholders = placeholder_token_ids(self.language_model.config)
            modality = token_positions(placeholders, embedding, input_ids, inputs_embeds) if placeholders else None
        return TokenGroups(ignored, modality)

    def _warn_without_labels(self) -> None:
        if self._labels is not None or self._warned_without_labels or self.layer.active_pool is None:
            return
        if self.layer.is_training_step:
            self._warned_without_labels = True
            warnings.warn(
                "A forward pass in training mode got no `labels`. The whole input makes the query then, an answer in "
                "it included, and no key loss is added. Pass `labels`, or name the prompt with `listen_query_mask` "
                "and add `model.key_loss` to your loss.",
                UserWarning,
                stacklevel=2,
            )

    def after_language_model(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return output if self._rests else self._add_key_loss(output)

    @torch.compiler.disable
    def _add_key_loss(self, output: Any) -> Any:
        labels, num_items, per_row = self._labels, self._num_items_in_batch, self.layer.key_loss_per_row
        self._labels = self._query_mask = self._num_items_in_batch = None
        self._groups = NO_GROUPS
        name = self.layer.active_pool
        if output is None or labels is None or per_row is None or name is None:
            return output
        weighted = self.layer.states[name].config.key_loss_weight * per_row
        return add_key_loss(output, weighted, labels, num_items)

    # ---------------------------------------------------------------------------------------------------- backbone

    def before_backbone(
        self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._rests:
            generation = self.generation
            assert generation is not None
            self._placement, generation.placement = generation.placement, None
            self._wants_tuple = False
            return None
        return self._add_prompts(args, kwargs)

    @torch.compiler.disable
    def _add_prompts(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        self._placement = None
        call = _by_name(self._backbone_arguments, args, kwargs)
        if self._captures:
            self._embed(call)
            raise _CallCapturedError(call, self._groups)
        cache = call.get("past_key_values")
        past_length = 0 if cache is None else int(cache.get_seq_length())
        is_on = self.layer.active_pool is not None
        if past_length > 0:
            refuse_cache_of_other_state(cache_has_prompts=getattr(cache, CACHE_ATTRIBUTE, 0) > 0, is_on=is_on)
        if not is_on:
            return None
        refuse_unsupported(call, past_length)
        if past_length == 0:
            self._prefill(call)
        else:
            self._continue(call, cache, past_length)
        return (), call

    def _embed(self, call: dict[str, Any]) -> torch.Tensor:
        if call.get("inputs_embeds") is None:
            call["inputs_embeds"] = self.backbone.get_input_embeddings()(call["input_ids"])  # type: ignore[operator]
        call["input_ids"] = None
        inputs_embeds: torch.Tensor = call["inputs_embeds"]
        return inputs_embeds

    def _prefill(self, call: dict[str, Any]) -> None:
        inputs_embeds = self._embed(call)
        prompts = self._prompts_for(inputs_embeds, call.get("attention_mask"))
        self._placement = self.insert(call, prompts)
        # Stripping needs names; a caller who wants a tuple gets one afterwards.
        return_dict = call.get("return_dict")
        default = getattr(self.backbone.config, "return_dict", True)
        self._wants_tuple = not (default if return_dict is None else return_dict)
        if self._wants_tuple:
            call["return_dict"] = True

    def _prompts_for(self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
        batch_size, length = inputs_embeds.shape[:2]
        generation = self.generation
        if generation is None:
            return self.layer.choose(inputs_embeds, attention_mask, self._labels, self._query_mask, self._groups)
        if generation.prompts is None:
            query_mask = generation.query_mask_for(batch_size, length)
            generation.prompts = self.layer.choose(
                inputs_embeds, attention_mask, query_mask=query_mask, groups=self._groups
            )
        return repeat_rows(generation.prompts, batch_size)

    def insert(self, call: dict[str, Any], prompts: torch.Tensor) -> PromptPlacement:
        """
        Inserts prompts into the arguments of a backbone, in place.

        Args:
            call (`dict`): the arguments by name; `inputs_embeds` of shape `(batch_size, length, embedding_size)`.
            prompts (`torch.FloatTensor` of shape `(batch_size, k, embedding_size)`)

        Returns:
            [`PromptPlacement`]: where they are.
        """
        inputs_embeds = call["inputs_embeds"]
        attention_mask, position_ids = call.get("attention_mask"), call.get("position_ids")
        placement = PromptPlacement(prompts.shape[1], attention_mask)
        call["inputs_embeds"] = placement.insert_embeds(inputs_embeds, prompts)
        if attention_mask is not None:
            call["attention_mask"] = placement.insert_mask(attention_mask)
        if position_ids is not None:
            call["position_ids"] = placement.insert_positions(position_ids)
        elif attention_mask is not None and "position_ids" in self._backbone_arguments:
            call["position_ids"] = positions_from_mask(call["attention_mask"])
        self._insert_others(call, placement, inputs_embeds.shape[:2])
        return placement

    def _insert_others(self, call: dict[str, Any], placement: PromptPlacement, shape: torch.Size) -> None:
        for name in self._backbone_arguments:
            value = call.get(name)
            if name in _PLACED_ARGUMENTS or not torch.is_tensor(value) or value.shape[:2] != shape:
                continue
            if value.dtype != torch.bool:
                raise ValueError(
                    f"LISTEN cannot place prompts among `{name}`: they have no value there. Leave `{name}` out."
                )
            # Masks of special positions, such as those of images: a prompt is none.
            call[name] = placement.insert_mask(value, value=False)

    def _continue(self, call: dict[str, Any], cache: Any, past_length: int) -> None:
        prompt_length = getattr(cache, CACHE_ATTRIBUTE)
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
        return output if self._placement is None else self._strip(output)

    @torch.compiler.disable
    def _strip(self, output: Any) -> Any:
        placement, self._placement = self._placement, None
        if placement is None or output is None:
            return output
        output["last_hidden_state"] = placement.strip(output["last_hidden_state"])
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(
                placement.strip(hidden_states) for hidden_states in output["hidden_states"]
            )
        if output.get("attentions") is not None:
            # Rows are the input's positions; the columns keep the prompts, whose share is then readable.
            output["attentions"] = tuple(
                placement.strip(attention.transpose(1, 2)).transpose(1, 2) for attention in output["attentions"]
            )
        cache = output.get("past_key_values")
        if cache is not None:
            setattr(cache, CACHE_ATTRIBUTE, placement.prompt_length)
        return output.to_tuple() if self._wants_tuple else output


def repeat_rows(tensor: torch.Tensor, batch_size: int) -> torch.Tensor:
    """Repeats each row for its beams or return sequences, as `generate` does."""
    return tensor if len(tensor) == batch_size else tensor.repeat_interleave(batch_size // len(tensor), dim=0)


def _by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}
