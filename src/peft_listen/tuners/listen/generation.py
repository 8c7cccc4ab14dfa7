"""`generate` with prompts.

Most ways of generating need nothing but the hooks, and one piece of knowledge that only the call to `generate` has:
where the user's input ends, so that generated tokens never get into the query. The others size caches and masks, or
slice the input, by a length that knows nothing of prompts. For these, `generate` gets embeddings that hold the prompts
already, and the hooks rest.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS

from .hooks import CACHE_ATTRIBUTE, GenerationState, PromptHooks, repeat_rows
from .placement import PromptPlacement
from .query import leading_padding
from .unsupported import refuse_cache_of_other_state


_ATTRIBUTE = "generate"

# "hybrid" means the default dynamic cache to transformers.
_STATIC_CACHES = frozenset(ALL_STATIC_CACHE_IMPLEMENTATIONS) - {"hybrid"}


class PromptGeneration:
    """
    Stands in for the `generate` of one language model, and calls it.

    It is an attribute of the model's instance, as a custom `generate` of transformers is: everything that generates
    goes through it, whether the model is wrapped in a `PeftModel`, in a pipeline, or in nothing.

    Args:
        hooks ([`PromptHooks`]): the hooks on this model's backbone.
    """

    def __init__(self, hooks: PromptHooks) -> None:
        self._hooks = hooks
        self._model = hooks.language_model
        self._overridden: Callable[..., Any] | None = self._model.__dict__.get(_ATTRIBUTE)
        setattr(self._model, _ATTRIBUTE, self.generate)

    def remove(self) -> None:
        """Gives the model its own `generate` back."""
        self._model.__dict__.pop(_ATTRIBUTE, None)
        if self._overridden is not None:
            setattr(self._model, _ATTRIBUTE, self._overridden)

    @property
    def _original(self) -> Callable[..., Any]:
        # Looked up on the class each time: a bound method kept here would be pickled by its name, and find this one.
        if self._overridden is not None:
            return self._overridden
        method: Callable[..., Any] = getattr(type(self._model), _ATTRIBUTE).__get__(self._model)
        return method

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """
        The model's `generate`, with prompts. Takes what it takes, and:

        Args:
            listen_query_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                The positions of the input that make the query; all that are not padding if not given.

        Raises:
            ValueError: for a mask of another shape; for a cache that was filled with the adapter off; for
                combinations that the prompts do not fit into (the message says what to do instead).
        """
        original = self._original
        names = list(inspect.signature(original).parameters)
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        query_mask = call.pop("listen_query_mask", None)
        cache = call.get("past_key_values")
        is_filled = cache is not None and int(cache.get_seq_length()) > 0
        is_on = self._hooks.layer.active_pool is not None
        if is_filled:
            refuse_cache_of_other_state(cache_has_prompts=getattr(cache, CACHE_ATTRIBUTE, 0) > 0, is_on=is_on)
        if not is_on:
            return original(**call)

        is_static = self._setting(call, "cache_implementation") in _STATIC_CACHES
        is_static = is_static or (cache is not None and getattr(cache, "is_compileable", False))
        is_chunked = self._setting(call, "prefill_chunk_size") is not None
        is_assisted = call.get("assistant_model") is not None or any(
            self._setting(call, name) is not None for name in ("prompt_lookup_num_tokens", "assistant_early_exit")
        )
        if is_chunked and (is_static or is_filled):
            raise ValueError(
                "LISTEN does not support `prefill_chunk_size` together with a static or a filled cache. Leave "
                "`prefill_chunk_size` out, or start from an empty dynamic cache."
            )
        if is_assisted and is_filled:
            raise ValueError(
                "LISTEN does not support assisted decoding from a filled cache. Leave the assistant out, or start "
                "from an empty cache."
            )
        state = GenerationState(query_mask=self._query_mask(call, query_mask))
        if is_filled:
            call, state = self._continued(call)
        elif is_static:
            call, state = self._with_prompts(call, state)
        elif is_chunked:
            state.prompts = self._prompts_for_chunks(call, state)
        with self._hooks.generating(state):
            return original(**call)

    def _setting(self, call: dict[str, Any], name: str) -> Any:
        for source in (call, call.get("generation_config"), getattr(self._model, "generation_config", None)):
            value = source.get(name) if isinstance(source, dict) else getattr(source, name, None)
            if value is not None:
                return value
        return None

    def _input_ids(self, call: dict[str, Any]) -> torch.Tensor | None:
        input_ids = call.get("input_ids")
        if input_ids is None and getattr(self._model, "main_input_name", "input_ids") == "input_ids":
            input_ids = call.get("inputs")
        return input_ids

    def _query_mask(self, call: dict[str, Any], query_mask: torch.Tensor | None) -> torch.Tensor:
        """The query's positions, so that columns behind them are known to be generated."""
        inputs = call.get("inputs_embeds")
        inputs = self._input_ids(call) if inputs is None else inputs
        shape = (
            (1, 1) if inputs is None else tuple(inputs.shape[:2])
        )  # without input, `generate` begins with one token
        if query_mask is None:
            return torch.ones(shape, dtype=torch.bool)
        if tuple(query_mask.shape) != shape:
            raise ValueError(
                f"`listen_query_mask` must have the shape of the input, {shape}, got {tuple(query_mask.shape)}."
            )
        return query_mask.bool()

    # ---------------------------------------------------------------------------------- embeddings that hold prompts

    def _model_inputs(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments that are for the model and not for `generate`."""
        ours = set(inspect.signature(getattr(type(self._model), _ATTRIBUTE)).parameters) | set(
            GenerationConfig().__dict__
        )
        inputs = {
            name: value
            for name, value in call.items()
            if name not in ours and isinstance(value, (torch.Tensor, list, tuple))
        }
        input_ids = self._input_ids(call)
        if input_ids is not None:
            inputs["input_ids"] = input_ids
        elif call.get("inputs") is not None:
            inputs[self._model.main_input_name] = call["inputs"]  # type: ignore[index]
        if inputs.get("inputs_embeds") is not None:
            inputs.pop("input_ids", None)
        if "attention_mask" not in inputs and input_ids is not None:
            inputs["attention_mask"] = self._mask_from_padding(call, input_ids)
        return inputs

    def _mask_from_padding(self, call: dict[str, Any], input_ids: torch.Tensor) -> torch.Tensor:
        """The mask that `generate` makes when it gets none: without the padding, if that can be told from the end."""
        pad, eos = (self._setting(call, name) for name in ("pad_token_id", "eos_token_id"))
        if pad is None or pad == eos or (isinstance(eos, (list, tuple)) and pad in eos):
            return torch.ones_like(input_ids)
        return (input_ids != pad).long()

    def _choose(self, inputs: dict[str, Any], state: GenerationState) -> tuple[dict[str, Any], torch.Tensor]:
        backbone_call, groups = self._hooks.backbone_inputs(**inputs)
        embeds = backbone_call["inputs_embeds"]
        query_mask = state.query_mask_for(*embeds.shape[:2])
        mask = backbone_call.get("attention_mask")
        return backbone_call, self._hooks.layer.choose(embeds, mask, query_mask=query_mask, groups=groups)

    def _with_prompts(self, call: dict[str, Any], state: GenerationState) -> tuple[dict[str, Any], GenerationState]:
        """Chooses the prompts, and puts them into the embeddings that `generate` is to begin with."""
        inputs = self._model_inputs(call)
        backbone_call, prompts = self._choose(inputs, state)
        length = backbone_call["inputs_embeds"].shape[1]
        placement = self._hooks.insert(backbone_call, prompts)
        others = [
            name
            for name, value in backbone_call.items()
            if name not in ("inputs_embeds", "attention_mask", "position_ids", "past_key_values")
            and (torch.is_tensor(value) or (isinstance(value, (list, tuple)) and len(value) > 0))
        ]
        if others:
            raise NotImplementedError(
                f"{type(self._model).__name__} hands {', '.join(f'`{name}`' for name in others)} to its decoder beside "
                "the embeddings, which `generate` cannot take from outside. Use the default dynamic cache."
            )
        call = {name: value for name, value in call.items() if name not in inputs and name != "inputs"}
        call["inputs_embeds"], call["attention_mask"] = backbone_call["inputs_embeds"], backbone_call["attention_mask"]
        positions = backbone_call.get("position_ids")
        if positions is not None and ("position_ids" in inputs or positions.ndim > 2):
            call["position_ids"] = positions  # others follow from the mask
        batch_size = len(prompts) * self._copies(call)
        if "input_ids" in inputs:
            call["input_ids"] = inputs["input_ids"]
        self._count_new_tokens(call, length)
        self._refuse_small_cache(call, prompts.shape[1], length)
        inserted = GenerationState(prompts=prompts, are_inserted=True, placement=placement.repeat_rows(batch_size))
        return call, inserted

    def _copies(self, call: dict[str, Any]) -> int:
        return max(self._setting(call, name) or 1 for name in ("num_beams", "num_return_sequences"))

    def _count_new_tokens(self, call: dict[str, Any], length: int) -> None:
        """States lengths as numbers of new tokens: `generate` would count the prompts in otherwise."""
        config = call.get("generation_config")
        if config is not None:
            config = call["generation_config"] = copy.deepcopy(config)
        for total, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
            value = self._setting(call, total)
            call.pop(total, None)
            if config is not None:
                setattr(config, total, None)
            if self._setting(call, new) is not None or not value:
                continue
            if value <= length and new == "max_new_tokens":
                raise ValueError(
                    f"The input has {length} tokens, so that `max_length`={value} leaves none to generate. Raise it, "
                    "or set `max_new_tokens`."
                )
            if config is None:
                call[new] = max(value - length, 0)
            else:
                setattr(config, new, max(value - length, 0))

    def _refuse_small_cache(self, call: dict[str, Any], prompt_length: int, length: int) -> None:
        cache, new_tokens = call.get("past_key_values"), self._setting(call, "max_new_tokens")
        sizes = [
            layer.max_cache_len
            for layer in getattr(cache, "layers", ())
            if hasattr(layer, "max_cache_len") and not layer.is_sliding
        ]
        if not sizes or new_tokens is None:
            return
        size, needed = min(sizes), prompt_length + length + new_tokens - 1
        if size < needed:
            raise ValueError(
                f"The cache holds {size} positions, and {prompt_length} prompts, {length} tokens and {new_tokens} new "
                f"ones need {needed}. Make the cache larger."
            )

    def _continued(self, call: dict[str, Any]) -> tuple[dict[str, Any], GenerationState]:
        """Goes on from a filled cache: `generate` skips as many positions as it holds, those of the prompts included,
        so the input is made as long as if they were in it. What stands at skipped positions does not matter."""
        cache = call["past_key_values"]
        prompt_length = getattr(cache, CACHE_ATTRIBUTE)
        inputs = self._model_inputs(call)
        unplaced = sorted(set(inputs) - {"input_ids", "inputs_embeds", "attention_mask"})
        if unplaced:
            raise ValueError(
                f"LISTEN cannot go on from a filled cache with new {', '.join(f'`{name}`' for name in unplaced)}. Pass "
                "the whole input with an empty cache."
            )
        backbone_call, _ = self._hooks.backbone_inputs(**inputs)
        embeds, mask = backbone_call["inputs_embeds"], inputs.get("attention_mask")
        cached = int(cache.get_seq_length()) - prompt_length
        length = embeds.shape[1] if mask is None else mask.shape[1]
        new = length - cached
        if new < 1 or embeds.shape[1] not in (length, new):
            raise ValueError(
                f"The cache holds {cached} tokens; the input has {embeds.shape[1]}, and the mask covers {length}. Pass "
                "all tokens, or the new ones alone with a mask over all of them."
            )
        mask = torch.ones(embeds.shape[0], length, dtype=torch.long, device=embeds.device) if mask is None else mask
        padded = embeds.new_zeros(embeds.shape[0], prompt_length + length, embeds.shape[2])
        padded[:, -new:] = embeds[:, -new:]
        call["inputs_embeds"] = padded
        call["attention_mask"] = PromptPlacement(prompt_length, mask).insert_mask(mask)
        if self._input_ids(call) is not None:
            call["input_ids"] = self._input_ids(call)
            call.pop("inputs", None)
        self._count_new_tokens(call, length)
        self._refuse_small_cache(call, prompt_length, length)
        return call, GenerationState(are_inserted=True)

    def _prompts_for_chunks(self, call: dict[str, Any], state: GenerationState) -> torch.Tensor:
        """Chooses by the whole input, since the backbone will see it in pieces."""
        inputs = self._model_inputs(call)
        chunk_size = self._setting(call, "prefill_chunk_size")
        mask = inputs.get("attention_mask")
        if mask is not None and int(leading_padding(mask).max()) >= chunk_size:
            raise ValueError(
                f"A row begins with {int(leading_padding(mask).max())} positions of padding, which fill the first chunk "
                f"of `prefill_chunk_size`={chunk_size}: its prompts would not stand before its text. Use larger "
                "chunks, or a batch of rows of similar length."
            )
        _, prompts = self._choose(inputs, state)
        return repeat_rows(prompts, len(prompts) * self._copies(call))


def has_generate(model: nn.Module) -> bool:
    """Whether the model can generate, so that [`PromptGeneration`] has something to stand in for."""
    can_generate = getattr(model, "can_generate", None)
    return can_generate is not None and bool(can_generate()) and hasattr(type(model), _ATTRIBUTE)
