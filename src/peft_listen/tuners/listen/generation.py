"""`generate` with prompts.

Most generation modes need the hooks, and one piece of information that only the call to `generate` has: the length of the
user's input. With it, generated tokens never enter the query. The other modes allocate caches and masks, or slice the
input, by a length that does not include the prompts. For these, `generate` gets embeddings that already contain the
prompts, and the hooks are bypassed.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS

from ...untouched import check_untouched
from .calls import GenerateCall, repeat_rows
from .hooks import CACHE_ATTRIBUTE, PromptHooks, has_generate
from .input_preparation import InputPreparation
from .layer import ListenLayer
from .placement import PromptPlacement
from .pool import PoolOutput
from .query import leading_padding
from .validation import check_cache_matches_adapter


# The number of new tokens that transformers generates if no length is set.
DEFAULT_NEW_TOKENS = 20

# "hybrid" means the default dynamic cache to transformers.
_STATIC_CACHES = frozenset(ALL_STATIC_CACHE_IMPLEMENTATIONS) - {"hybrid"}


class PromptGeneration:
    """
    Wraps the `generate` of one language model, and its `prompt_embeds` if it has this method.

    Both are set as attributes of the model instance, like a custom `generate` in transformers. Every generation
    therefore calls the first, whether the model is wrapped in a `PeftModel`, in a pipeline, or not at all.

    Args:
        hooks ([`PromptHooks`]): the hooks on this model's backbone.
    """

    def __init__(self, hooks: PromptHooks) -> None:
        self._hooks = hooks
        self._model = hooks.language_model
        self._cache_name = hooks.cache_name
        self._overridden: Callable[..., Any] | None = self._model.__dict__.get("generate")
        self._model.generate = self.generate  # type: ignore[assignment]
        if hasattr(type(self._model), "prompt_embeds"):
            self._model.prompt_embeds = self.prompt_embeds  # type: ignore[assignment]
        # Some models run the `generate` of a language model inside them.
        self._preparations = [
            InputPreparation(module, hooks)
            for module in self._model.modules()
            if has_generate(module) and any(child is hooks.backbone for child in module.modules())
        ]

    def remove(self) -> None:
        """Restores the model's own methods."""
        self._model.__dict__.pop("generate", None)
        self._model.__dict__.pop("prompt_embeds", None)
        if self._overridden is not None:
            self._model.generate = self._overridden  # type: ignore[assignment]
        for preparation in self._preparations:
            preparation.remove()

    @property
    def _original(self) -> Callable[..., Any]:
        # Looked up on the class each time: a stored bound method would be pickled by name and resolve to this wrapper.
        if self._overridden is not None:
            return self._overridden
        method: Callable[..., Any] = type(self._model).generate.__get__(self._model)  # type: ignore[attr-defined]
        return method

    @torch.no_grad()
    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """
        The model's `generate`, with prompts. In addition to its arguments, it accepts:

        Args:
            listen_query_mask (`torch.Tensor` of shape `(batch_size, sequence_length)`, *optional*):
                The positions of the input that form the query. If not given, all positions except padding.

        Raises:
            ValueError: for a mask of another shape; for a cache that was filled with the adapter off; for combinations
                that prompts cannot be inserted into (the message says what to do instead).
        """
        original = self._original
        names = list(inspect.signature(original).parameters)
        call = {**dict(zip(names, args, strict=False)), **kwargs}
        query_mask = call.pop("listen_query_mask", None)
        # `generate` accepts both names where the model's own is `cache`.
        given = [name for name in ("cache", "past_key_values") if call.get(name) is not None]
        if given:
            call[self._cache_name] = call.pop(given[0])
        cache = call.get(self._cache_name)
        is_filled = cache is not None and int(cache.get_seq_length()) > 0
        is_on = self._hooks.layer.active_pool is not None
        if is_filled:
            has_prompts = getattr(cache, CACHE_ATTRIBUTE, 0) > 0
            check_cache_matches_adapter(cache_has_prompts=has_prompts, adapter_is_on=is_on)
        if not is_on:
            return original(**call)

        is_static = self._setting(call, "cache_implementation") in _STATIC_CACHES
        is_static = is_static or (cache is not None and getattr(cache, "is_compileable", False))
        is_chunked = self._setting(call, "prefill_chunk_size") is not None
        is_assisted = call.get("assistant_model") is not None or any(
            self._setting(call, name) is not None for name in ("prompt_lookup_num_tokens", "assistant_early_exit")
        )
        if self._setting(call, "assistant_early_exit") is not None:
            raise ValueError(
                "LiSTEN does not support `assistant_early_exit`: the model would be its own assistant, with the same "
                "prompts. Use another model as the `assistant_model`."
            )
        if self._setting(call, "guidance_scale") not in (None, 1, 1.0) and self._setting(call, "use_cache") is False:
            raise ValueError(
                "LiSTEN does not support `guidance_scale` without a cache: the prompts of the negative input would be "
                "selected again for each token. Leave `use_cache` on."
            )
        if is_chunked and (is_static or is_filled):
            raise ValueError(
                "LiSTEN does not support `prefill_chunk_size` together with a static or a filled cache. Leave "
                "`prefill_chunk_size` out, or start from an empty dynamic cache."
            )
        if is_assisted and is_filled:
            raise ValueError(
                "LiSTEN does not support assisted decoding from a filled cache. Leave the assistant out, or start "
                "from an empty cache."
            )
        self._check_positions(call)
        generate_call = GenerateCall(query_mask=self._query_mask(call, query_mask))
        if is_filled:
            call, generate_call = self._continued(call)
        elif is_static:
            call, generate_call = self._with_prompts(call, generate_call)
        elif is_chunked:
            self._select_for_chunks(call, generate_call)
        with self._hooks.generating(generate_call):
            output = original(**call)
        if generate_call.prompts_are_inserted and not generate_call.has_begun:
            raise RuntimeError(
                f"The `generate` of {type(self._model).__name__} did not call `prepare_inputs_for_generation`, so LiSTEN "
                "cannot tell which forward passes already contain prompts. Use the default dynamic cache."
            )
        return output

    @torch.no_grad()
    def prompt_embeds(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """See [`ListenModel.prompt_embeds`]."""
        check_untouched(self._hooks.backbone, self._model.get_output_embeddings(), ignored=(ListenLayer,))  # type: ignore[operator]
        query_mask = self._query_mask(inputs, inputs.pop("listen_query_mask", None))
        inputs = self._model_inputs(inputs)
        pool = self._hooks.layer.active_pool
        if pool is None:
            backbone_call, _ = self._hooks.backbone_inputs(**inputs)
        elif pool.deep is not None:
            raise ValueError(
                f"This adapter adds vectors in the layers {list(pool.deep.layers)} of the language model (`value_layers`), "
                "which embeddings of the input cannot express. Generate with this model, or train an adapter without "
                "`value_layers`."
            )
        else:
            backbone_call, _, _ = self._insert_prompts(inputs, GenerateCall(query_mask=query_mask))
        embeds = backbone_call["inputs_embeds"]
        mask = backbone_call.get("attention_mask")
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
        found = {"inputs_embeds": embeds, "attention_mask": mask}
        if backbone_call.get("position_ids") is not None:
            found["position_ids"] = backbone_call["position_ids"]
        return found

    def _check_positions(self, call: dict[str, Any]) -> None:
        """Warns if the new tokens may exceed the positions of the model, and limits their number if it cannot compute
        more."""
        inputs = self._input_ids(call) if call.get("inputs_embeds") is None else call["inputs_embeds"]
        length = 1 if inputs is None else inputs.shape[1]  # without input, `generate` begins with one token
        max_new_tokens, max_length = (self._setting(call, name) for name in ("max_new_tokens", "max_length"))
        if max_new_tokens is None:
            max_new_tokens = max(max_length - length, 0) if max_length else DEFAULT_NEW_TOKENS
        mask, cache = call.get("attention_mask"), call.get(self._cache_name)
        num_prompts = getattr(cache, CACHE_ATTRIBUTE, None) or self._hooks.layer.num_prompts
        length = length if mask is None else max(length, mask.shape[1])
        allowed = self._hooks.position_limit.check_generation(num_prompts, length, max_new_tokens, mask)
        if allowed < max_new_tokens:
            call["max_new_tokens"] = allowed
            call.pop("max_length", None)

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
        """The positions of the query within the input of `generate`."""
        inputs = call.get("inputs_embeds")
        inputs = self._input_ids(call) if inputs is None else inputs
        # Without input, `generate` begins with one token.
        shape = (1, 1) if inputs is None else tuple(inputs.shape[:2])
        if query_mask is None:
            # Created on the device of the input: a copy from the CPU would wait for the device.
            return torch.ones(shape, dtype=torch.bool, device=None if inputs is None else inputs.device)
        if tuple(query_mask.shape) != shape:
            raise ValueError(
                f"`listen_query_mask` must have the shape of the input, {shape}, got {tuple(query_mask.shape)}."
            )
        return query_mask.bool()

    # ------------------------------------------------------------------------------- embeddings that contain prompts

    def _model_inputs(self, call: dict[str, Any]) -> dict[str, Any]:
        """The arguments that `generate` passes on to the model."""
        own = set(inspect.signature(type(self._model).generate).parameters)  # type: ignore[attr-defined]
        own |= set(GenerationConfig().__dict__)
        inputs = {
            name: value
            for name, value in call.items()
            if name not in own and isinstance(value, (torch.Tensor, list, tuple))
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
        """The mask that `generate` creates if it gets none: it excludes padding, if the pad token is not an end token."""
        pad, eos = (self._setting(call, name) for name in ("pad_token_id", "eos_token_id"))
        if pad is None or pad == eos or (isinstance(eos, (list, tuple)) and pad in eos):
            return torch.ones_like(input_ids)
        return (input_ids != pad).long()

    def _select(self, inputs: dict[str, Any], generate_call: GenerateCall) -> tuple[dict[str, Any], PoolOutput]:
        backbone_call, groups = self._hooks.backbone_inputs(**inputs)
        embeds = backbone_call["inputs_embeds"]
        query_mask = generate_call.query_mask_for(*embeds.shape[:2])
        mask = backbone_call.get("attention_mask")
        output = self._hooks.layer.select(embeds, mask, query_mask=query_mask, groups=groups)
        return backbone_call, output

    def _insert_prompts(
        self, inputs: dict[str, Any], generate_call: GenerateCall
    ) -> tuple[dict[str, Any], PoolOutput, PromptPlacement]:
        """Selects the prompts, and inserts them into the arguments that the backbone gets for these inputs."""
        backbone_call, output = self._select(inputs, generate_call)
        length = backbone_call["inputs_embeds"].shape[1]
        placement = self._hooks.insert(backbone_call, output.prompts)
        others = [
            name
            for name, value in backbone_call.items()
            if name not in ("inputs_embeds", "attention_mask", "position_ids", self._cache_name)
            and (torch.is_tensor(value) or (isinstance(value, (list, tuple)) and len(value) > 0))
        ]
        if others:
            raise NotImplementedError(
                f"{type(self._model).__name__} passes {', '.join(f'`{name}`' for name in others)} to its decoder in "
                "addition to the embeddings, which `generate` does not accept. Use the default dynamic cache."
            )
        positions = backbone_call.get("position_ids")
        if positions is not None and "position_ids" not in inputs and positions.ndim <= 2:
            del backbone_call["position_ids"]  # they are computed from the mask
        self._hooks.position_limit.check(output.prompts.shape[1], 0, length, inputs.get("attention_mask"))
        return backbone_call, output, placement

    def _with_prompts(self, call: dict[str, Any], generate_call: GenerateCall) -> tuple[dict[str, Any], GenerateCall]:
        """Inserts the prompts into the initial embeddings of `generate`."""
        inputs = self._model_inputs(call)
        backbone_call, output, placement = self._insert_prompts(inputs, generate_call)
        prompts = output.prompts
        length = backbone_call["inputs_embeds"].shape[1] - prompts.shape[1]
        call = {name: value for name, value in call.items() if name not in inputs and name != "inputs"}
        call["inputs_embeds"], call["attention_mask"] = backbone_call["inputs_embeds"], backbone_call["attention_mask"]
        if backbone_call.get("position_ids") is not None:
            call["position_ids"] = backbone_call["position_ids"]
        batch_size = len(prompts) * self._copies(call)
        if "input_ids" in inputs:
            call["input_ids"] = inputs["input_ids"]
        self._count_new_tokens(call, length)
        self._check_cache_size(call, prompts.shape[1], length)
        placement = placement.repeat_rows(batch_size)
        return call, GenerateCall(prompts=prompts, deep=output.deep, prompts_are_inserted=True, placement=placement)

    def _copies(self, call: dict[str, Any]) -> int:
        return max(self._setting(call, name) or 1 for name in ("num_beams", "num_return_sequences"))

    def _count_new_tokens(self, call: dict[str, Any], length: int) -> None:
        """Expresses lengths as numbers of new tokens, since `generate` would count the prompts as well."""
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
                    f"The input has {length} tokens, so `max_length`={value} leaves none to generate. Increase it, "
                    "or set `max_new_tokens`."
                )
            if config is None:
                call[new] = max(value - length, 0)
            else:
                setattr(config, new, max(value - length, 0))

    def _check_cache_size(self, call: dict[str, Any], prompt_length: int, length: int) -> None:
        cache, new_tokens = call.get(self._cache_name), self._setting(call, "max_new_tokens")
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
                f"The cache holds {size} positions, but {prompt_length} prompts, {length} tokens and {new_tokens} new "
                f"ones need {needed}. Use a larger cache."
            )

    def _continued(self, call: dict[str, Any]) -> tuple[dict[str, Any], GenerateCall]:
        """Continues from a filled cache. `generate` skips as many positions as the cache holds, including those of the
        prompts, so the input is extended to the same length. The values at skipped positions are not used."""
        cache = call[self._cache_name]
        prompt_length = getattr(cache, CACHE_ATTRIBUTE)
        inputs = self._model_inputs(call)
        unplaced = sorted(set(inputs) - {"input_ids", "inputs_embeds", "attention_mask"})
        if unplaced:
            raise ValueError(
                f"LiSTEN cannot continue from a filled cache with new {', '.join(f'`{name}`' for name in unplaced)}. Pass "
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
        self._check_cache_size(call, prompt_length, length)
        return call, GenerateCall(prompts_are_inserted=True)

    def _select_for_chunks(self, call: dict[str, Any], generate_call: GenerateCall) -> None:
        """Selects prompts for the whole input, since the backbone gets it in chunks."""
        inputs = self._model_inputs(call)
        chunk_size = self._setting(call, "prefill_chunk_size")
        mask = inputs.get("attention_mask")
        if mask is not None and int(leading_padding(mask).max()) >= chunk_size:
            raise ValueError(
                f"A row begins with {int(leading_padding(mask).max())} positions of padding, which fill the first chunk "
                f"of `prefill_chunk_size`={chunk_size}: its prompts would not be directly before its text. Use larger "
                "chunks, or a batch of rows of similar length."
            )
        _, output = self._select(inputs, generate_call)
        generate_call.prompts = repeat_rows(output.prompts, len(output.prompts) * self._copies(call))
        generate_call.deep = output.deep
