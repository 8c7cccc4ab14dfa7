"""Prepends the selected prompts before the backbone runs, and strips them from its outputs.

`generate`, a `forward` without task type, and trainers that patch the causal language model all bypass
`ListenModel.forward`, but every path calls the backbone. The prompts are therefore inserted by hooks:

1. Before the causal language model: store labels and query mask, since they do not reach the backbone.
2. Before the backbone, with an empty cache: select, prepend, extend the mask, shift the positions.
3. Before the backbone, with a filled cache (a decoding step): extend the mask, shift the positions.
4. After the backbone: strip the prompts; logits and hidden states then have the input's length.
5. After the causal language model, in training: add the key loss to the loss.

With deep values, hooks on some layers of the backbone add vectors at the prompts' positions between 2 and 4; see
`deep_value_hooks.py`.

These steps share their state in one [`LanguageModelCall`], which only the calling thread can access.

`torch.compile` does not trace the hooks; it compiles the code between them, where the prompts only change a dynamic
sequence length. In a `generate` whose inputs already contain the prompts, the hooks do nothing and cause no graph
breaks.
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.hooks import RemovableHandle

from .backbone import find_decoder_layers
from .calls import GenerateCall, LanguageModelCall, repeat_rows
from .deep_value_hooks import DeepValueHooks
from .deep_values import DeepPrompts
from .key_loss import add_key_loss, is_read_by_trainers
from .layer import ListenLayer
from .placement import PromptPlacement, positions_from_mask
from .pool import PoolOutput, PromptPool
from .position_limit import PositionLimit
from .query import NO_GROUPS, TokenGroups, placeholder_token_ids, token_positions
from .text_reader import TextReader
from .validation import check_cache_matches_adapter, check_supported


# Attribute of a cache that contains prompts: their number.
CACHE_ATTRIBUTE = "listen_prompt_length"

# Attribute of a cache during a `generate` whose inputs and masks already include the prompts.
_INSERTED_ATTRIBUTE = "listen_prompts_are_inserted"

# Arguments of the backbone with one entry per position that the hooks extend one by one.
_PLACED_ARGUMENTS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids")


class _BackboneCallCaptured(Exception):  # noqa: N818  (control flow, not an error)
    """Carries the backbone's arguments out of a forward pass that stops there."""

    def __init__(self, arguments: dict[str, Any], call: LanguageModelCall) -> None:
        super().__init__()
        self.arguments = arguments
        self.call = call


class PromptHooks:
    """
    The hooks of one backbone.

    Args:
        layer ([`ListenLayer`]): selects the prompts.
        backbone (`nn.Module`): takes `inputs_embeds`, returns `last_hidden_state`.
        language_model (`nn.Module`): the model that contains the backbone and takes `labels`.
    """

    def __init__(self, layer: ListenLayer, backbone: nn.Module, language_model: nn.Module) -> None:
        self.layer = layer
        self.backbone = backbone
        self.language_model = language_model
        self._backbone_arguments = list(inspect.signature(backbone.forward).parameters)
        self._language_model_arguments = list(inspect.signature(language_model.forward).parameters)
        self.cache_name = cache_argument(self._backbone_arguments)
        self.position_limit = PositionLimit(backbone)
        # Labels of a classification head do not show where the prompt ends.
        self._labels_are_answers = has_generate(language_model)
        self._deep_values: DeepValueHooks | None = None
        self._warned_without_labels = False
        self._warned_of_unread_key_loss = False
        self._calls_to_check_for_padding = 16
        self._handles: list[RemovableHandle] = [
            language_model.register_forward_pre_hook(self.before_language_model, with_kwargs=True),
            backbone.register_forward_pre_hook(self.before_backbone, with_kwargs=True),
            backbone.register_forward_hook(self.after_backbone, with_kwargs=True, always_call=True),
            language_model.register_forward_hook(self.after_language_model, with_kwargs=True, always_call=True),
        ]

    def remove(self) -> None:
        """Removes the hooks from both modules."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self._deep_values is not None:
            self._deep_values.remove()

    def update_layers(self) -> None:
        """Sets hooks on the decoder layers for which a pool has deep values, and gives a reader to those that read text."""
        pools = [self.layer.pool_of(name) for name in self.layer.listen_pools]
        for pool in pools:
            if pool.text_query is not None and pool.text_query.reader is None:
                pool.text_query.reader = TextReader(self.backbone, find_decoder_layers(self.backbone))
        if self._deep_values is None and any(pool.deep is not None for pool in pools):
            embedding = self.backbone.get_input_embeddings()  # type: ignore[operator]
            self._deep_values = DeepValueHooks(self.layer, find_decoder_layers(self.backbone), embedding)
        if self._deep_values is not None:
            self._deep_values.update()

    @contextmanager
    def generating(self, call: GenerateCall) -> Iterator[None]:
        """Marks the calling thread's forward passes in the block as part of one `generate`."""
        thread = self.layer.thread
        before, thread.generate_call = thread.generate_call, call
        try:
            yield
        finally:
            thread.generate_call = before
            for cache in call.marked_caches:
                cache.__dict__.pop(_INSERTED_ATTRIBUTE, None)

    def backbone_inputs(self, **inputs: Any) -> tuple[dict[str, Any], TokenGroups]:
        """
        The arguments that the backbone would get for these inputs of the language model: `inputs_embeds` that include
        audio and images, `attention_mask`, `position_ids` and so on; and the positions that the query treats separately.
        The backbone itself does not run.
        """
        captured = self._capture_backbone_call({**inputs, "use_cache": False})
        return captured.arguments, captured.call.groups

    @torch.no_grad()
    def selection_for(self, **inputs: Any) -> PoolOutput:
        """
        The selection of the active adapter for these inputs of the language model, as outside training. The backbone does
        not run, and the selection is neither recorded nor counted.

        Args:
            inputs: arguments of the language model. With `labels`, the query ends before them.

        Raises:
            ValueError: if no adapter is active.
        """
        thread, name = self.layer.thread, self.layer.active_adapter_name
        if name is None:
            raise ValueError("No LiSTEN adapter is active.")
        key_loss_per_row = thread.key_loss_per_row
        try:
            captured = self._capture_backbone_call(inputs)
        finally:
            thread.key_loss_per_row = key_loss_per_row
        arguments, call = captured.arguments, captured.call
        labels = call.labels if self._labels_are_answers else None
        output: PoolOutput = self.layer.ready_pool(name)(
            arguments["inputs_embeds"],
            arguments.get("attention_mask"),
            labels,
            call.query_mask,
            call.groups,
            thread.prompt_lengths.get(name),
        )
        return output

    def _capture_backbone_call(self, inputs: dict[str, Any]) -> _BackboneCallCaptured:
        thread = self.layer.thread
        thread.captures_backbone_call = True
        try:
            self.language_model(**inputs)
        except _BackboneCallCaptured as captured:
            return captured
        finally:
            thread.captures_backbone_call = False
        raise RuntimeError(f"{type(self.language_model).__name__} did not call its backbone.")

    def _is_bypassed(self, kwargs: dict[str, Any]) -> bool:
        # Read from the cache: it belongs to one call of `generate`, and `torch.compile` can trace it.
        return getattr(kwargs.get(self.cache_name), _INSERTED_ATTRIBUTE, False)

    # ---------------------------------------------------------------------------------------------- language model

    def before_language_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self._is_bypassed(kwargs) else self._begin_call(module, args, kwargs)

    @torch.compiler.disable
    def _begin_call(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        thread = self.layer.thread
        call = thread.call = LanguageModelCall(frame=_calling_frame())
        if module is not self.language_model and self.layer.active_pool is not None:
            raise ValueError(
                f"LiSTEN does not support copies of {type(self.language_model).__name__} that share its hooks, as "
                "`torch.nn.DataParallel` creates them. Use `torch.nn.parallel.DistributedDataParallel` with one process "
                "per device, or hide all devices but one (`CUDA_VISIBLE_DEVICES=0`)."
            )
        thread.key_loss_per_row = None
        named = _by_name(self._language_model_arguments, args, kwargs)
        call.continues_generate = self._continues_generate(named)
        call.labels = named.get("labels")
        if call.labels is None and torch.is_tensor(shift_labels := named.get("shift_labels")):
            call.labels = F.pad(shift_labels[:, :-1], (1, 0), value=-100)
        call.num_items_in_batch = named.get("num_items_in_batch")
        call.groups = self._token_groups(named)
        if "listen_query_mask" not in kwargs:
            self._warn_without_labels(call)
            self._warn_of_padding_in_query(call, named)
            return None
        kwargs = dict(kwargs)
        call.query_mask = kwargs.pop("listen_query_mask")
        return args, kwargs

    def _token_groups(self, named: dict[str, Any]) -> TokenGroups:
        pool, cache = self.layer.active_pool, named.get(self.cache_name)
        if pool is None or (cache is not None and int(cache.get_seq_length()) > 0):
            return NO_GROUPS
        input_ids, inputs_embeds = named.get("input_ids"), named.get("inputs_embeds")
        embedding = self.backbone.get_input_embeddings()  # type: ignore[operator]
        ignored = modality = None
        if pool.config.query_ignored_token_ids:
            ignored = token_positions(pool.config.query_ignored_token_ids, embedding, input_ids, inputs_embeds)
        if pool.config.query_pooling == "modality_mean":
            placeholders = placeholder_token_ids(self.language_model.config)
            modality = token_positions(placeholders, embedding, input_ids, inputs_embeds) if placeholders else None
        return TokenGroups(ignored, modality)

    def _warn_without_labels(self, call: LanguageModelCall) -> None:
        pool = self.layer.active_pool
        if call.labels is not None or not self._labels_are_answers or self._warned_without_labels:
            return
        if pool is None or not pool.is_training_step:
            return
        self._warned_without_labels = True
        warnings.warn(
            "A forward pass in training mode got no `labels`. The query is then computed from the whole input, including "
            "any answer in it, and no key loss is added. Pass `labels`, or mark the prompt with `listen_query_mask` "
            "and add `model.key_loss` to your loss.",
            UserWarning,
            stacklevel=2,
        )

    def _warn_of_padding_in_query(self, call: LanguageModelCall, named: dict[str, Any]) -> None:
        # Evaluation harnesses pad on the right and pass neither mask nor labels. Checking every such call would
        # synchronize each time, so only the first ones are checked.
        input_ids, pad = named.get("input_ids"), getattr(self.language_model.config, "pad_token_id", None)
        pool = self.layer.active_pool
        if pool is None or pool.is_training_step or self.layer.thread.generate_call is not None:
            return
        if (
            call.labels is not None
            or named.get("attention_mask") is not None
            or named.get(self.cache_name) is not None
        ):
            return
        if self._calls_to_check_for_padding == 0 or pad is None or not torch.is_tensor(input_ids):
            return
        self._calls_to_check_for_padding -= 1
        if input_ids.ndim == 2 and input_ids.shape[1] > 1 and bool((input_ids[:, -1] == pad).any()):
            self._calls_to_check_for_padding = 0
            warnings.warn(
                "The input ends with padding, and the model got neither `attention_mask` nor `labels`. Padding and any "
                "continuation to be scored are then part of the query, and the selected prompts depend on them. Pass "
                "`attention_mask`, and mark the context with `listen_query_mask` (1 for its tokens), as shown in the "
                "documentation for evaluation harnesses.",
                UserWarning,
                stacklevel=2,
            )

    def after_language_model(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> Any:
        return output if self._is_bypassed(kwargs) else self._end_call(kwargs, output)

    @torch.compiler.disable
    def _end_call(self, kwargs: dict[str, Any], output: Any) -> Any:
        thread = self.layer.thread
        call, thread.call = thread.call, None
        cache, generate_call = kwargs.get(self.cache_name), thread.generate_call
        is_inserted = generate_call is not None and generate_call.prompts_are_inserted
        if (
            cache is not None
            and generate_call is not None
            and is_inserted
            and call is not None
            and call.continues_generate
        ):
            generate_call.marked_caches.append(cache)
            setattr(cache, _INSERTED_ATTRIBUTE, True)  # the next forward passes are decoding steps
        if call is None or output is None or call.key_loss_per_row is None:
            return output
        pool = self.layer.active_pool
        assert pool is not None
        weighted = pool.config.key_loss_weight * call.key_loss_per_row
        if self._labels_are_answers and call.labels is None:
            return output
        if not is_read_by_trainers(output):
            self._hand_over_key_loss(call.key_loss_per_row, pool)
        if not self._labels_are_answers:
            return add_key_loss(output, weighted)
        return add_key_loss(output, weighted, call.labels, call.num_items_in_batch)

    def _hand_over_key_loss(self, per_row: torch.Tensor, pool: PromptPool) -> None:
        receiver = self.layer.thread.key_loss_receiver
        if receiver is not None:
            receiver(per_row)
            return
        trains_keys = pool.config.key_loss_weight > 0 and not pool.selector.keys_receive_gradient
        if not trains_keys or not pool.keys.requires_grad or self._warned_of_unread_key_loss:
            return
        self._warned_of_unread_key_loss = True
        warnings.warn(
            "The trainer computes its loss from the model's outputs and does not read `outputs.loss`, so the keys are not "
            "trained and keep their values. Add a `ListenCallback` to the trainer (in one process or with "
            "DistributedDataParallel), which trains them, or add `model.key_loss` to your loss.",
            UserWarning,
            stacklevel=2,
        )

    # ---------------------------------------------------------------------------------------------------- backbone

    def before_backbone(
        self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self._is_bypassed(kwargs) else self._add_prompts(args, kwargs)

    @torch.compiler.disable
    def _add_prompts(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        thread = self.layer.thread
        arguments = _by_name(self._backbone_arguments, args, kwargs)
        if self.cache_name == "cache" and "past_key_values" in arguments:  # the older name, which is still accepted
            arguments["cache"] = arguments.pop("past_key_values")
        if thread.call is None or not thread.call.is_running:
            thread.call = LanguageModelCall(frame=_calling_frame(), is_backbone_only=True)
            thread.call.continues_generate = self._continues_generate(arguments)
        if thread.captures_backbone_call:
            self._embed(arguments)
            raise _BackboneCallCaptured(arguments, thread.call)
        cache = arguments.get(self.cache_name)
        generate_call = thread.generate_call if thread.call.continues_generate else None
        if generate_call is not None and generate_call.prompts_are_inserted:
            placement = thread.call.placement = generate_call.placement
            if placement is not None:  # the prefill
                generate_call.placement = None
                batch_size = arguments["inputs_embeds"].shape[0]
                self._begin_deep_values(thread.call, generate_call.deep, placement, batch_size)
            return None
        past_length = 0 if cache is None else int(cache.get_seq_length())
        is_on = self.layer.active_pool is not None
        if past_length > 0:
            has_prompts = getattr(cache, CACHE_ATTRIBUTE, 0) > 0
            check_cache_matches_adapter(cache_has_prompts=has_prompts, adapter_is_on=is_on)
        if not is_on:
            return None
        check_supported(arguments, past_length)
        if past_length == 0:
            self._prefill(arguments, thread.call, generate_call)
        else:
            self._continue(arguments, cache, past_length)
        return (), arguments

    def _continues_generate(self, arguments: dict[str, Any]) -> bool:
        """Whether this forward pass belongs to the running `generate`."""
        generate_call = self.layer.thread.generate_call
        return generate_call is not None and generate_call.owns(arguments, self.cache_name)

    def _embed(self, arguments: dict[str, Any]) -> torch.Tensor:
        if arguments.get("inputs_embeds") is None:
            embedding = self.backbone.get_input_embeddings()  # type: ignore[operator]
            arguments["inputs_embeds"] = embedding(arguments["input_ids"])
        arguments["input_ids"] = None
        inputs_embeds: torch.Tensor = arguments["inputs_embeds"]
        return inputs_embeds

    def _prefill(self, arguments: dict[str, Any], call: LanguageModelCall, generate_call: GenerateCall | None) -> None:
        inputs_embeds = self._embed(arguments)
        attention_mask = arguments.get("attention_mask")
        prompts, deep = self._prompts_for(inputs_embeds, attention_mask, call, generate_call)
        self.position_limit.check(prompts.shape[1], 0, inputs_embeds.shape[1], attention_mask)
        call.placement = self.insert(arguments, prompts)
        self._begin_deep_values(call, deep, call.placement, inputs_embeds.shape[0])
        # Outputs are stripped by name. If the caller requested a tuple, the output is converted back afterwards.
        return_dict = arguments.get("return_dict")
        default = getattr(self.backbone.config, "return_dict", True)
        call.returns_tuple = not (default if return_dict is None else return_dict)
        if call.returns_tuple:
            arguments["return_dict"] = True

    def _prompts_for(
        self,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor | None,
        call: LanguageModelCall,
        generate_call: GenerateCall | None,
    ) -> tuple[torch.Tensor, DeepPrompts | None]:
        batch_size, length = inputs_embeds.shape[:2]
        if generate_call is None:
            labels = call.labels if self._labels_are_answers else None
            output = self.layer.select(
                inputs_embeds,
                attention_mask,
                labels,
                call.query_mask,
                call.groups,
                is_comparison=self._is_comparison(call),
            )
            call.key_loss_per_row = self.layer.thread.key_loss_per_row = output.key_loss_per_row
            return output.prompts, output.deep
        if generate_call.prompts is None:
            query_mask = generate_call.query_mask_for(batch_size, length)
            output = self.layer.select(inputs_embeds, attention_mask, query_mask=query_mask, groups=call.groups)
            generate_call.prompts, generate_call.deep = output.prompts, output.deep
        return repeat_rows(generate_call.prompts, batch_size), generate_call.deep

    def _is_comparison(self, call: LanguageModelCall) -> bool:
        """Whether a forward pass scores answers in training mode without gradients, as those of a reference model do."""
        if torch.is_grad_enabled() or self.layer.thread.generate_call is not None:
            return False
        return self.layer.training and (call.labels is not None or call.query_mask is not None)

    def _begin_deep_values(
        self, call: LanguageModelCall, deep: DeepPrompts | None, placement: PromptPlacement, batch_size: int
    ) -> None:
        if deep is not None and self._deep_values is not None:
            deep = deep._replace(vectors=repeat_rows(deep.vectors, batch_size))
            call.deep = self._deep_values.begin(deep, placement)

    def insert(self, arguments: dict[str, Any], prompts: torch.Tensor) -> PromptPlacement:
        """
        Inserts prompts into the arguments of the backbone, in place.

        Args:
            arguments (`dict`): by name; `inputs_embeds` of shape `(batch_size, length, embedding_size)`.
            prompts (`torch.FloatTensor` of shape `(batch_size, k, embedding_size)`)

        Returns:
            [`PromptPlacement`]: their positions.
        """
        inputs_embeds = arguments["inputs_embeds"]
        attention_mask, position_ids = arguments.get("attention_mask"), arguments.get("position_ids")
        placement = PromptPlacement(prompts.shape[1], attention_mask)
        arguments["inputs_embeds"] = placement.insert_embeds(inputs_embeds, prompts)
        if attention_mask is not None:
            arguments["attention_mask"] = placement.insert_mask(attention_mask)
        if position_ids is not None:
            arguments["position_ids"] = placement.insert_positions(position_ids)
        elif attention_mask is not None and "position_ids" in self._backbone_arguments:
            arguments["position_ids"] = positions_from_mask(arguments["attention_mask"])
        self._insert_others(arguments, placement, inputs_embeds.shape[:2])
        return placement

    def _insert_others(self, arguments: dict[str, Any], placement: PromptPlacement, shape: torch.Size) -> None:
        for name in self._backbone_arguments:
            value = arguments.get(name)
            if name in _PLACED_ARGUMENTS or not torch.is_tensor(value) or value.shape[:2] != shape:
                continue
            if value.dtype != torch.bool:
                raise ValueError(
                    f"LiSTEN cannot insert prompts into `{name}`: it has no value for them. Do not pass `{name}`."
                )
            # Masks of special positions, such as image tokens; prompts are not special.
            arguments[name] = placement.insert_mask(value, value=False)

    def _continue(self, arguments: dict[str, Any], cache: Any, past_length: int) -> None:
        prompt_length = getattr(cache, CACHE_ATTRIBUTE)
        has_embeds = arguments.get("inputs_embeds") is not None
        length = arguments["inputs_embeds" if has_embeds else "input_ids"].shape[1]
        attention_mask, position_ids = arguments.get("attention_mask"), arguments.get("position_ids")
        if attention_mask is not None:
            if attention_mask.shape[1] + prompt_length != past_length + length:
                raise ValueError(
                    f"The attention mask covers {attention_mask.shape[1]} positions, but the cache holds "
                    f"{past_length - prompt_length} tokens (and {prompt_length} prompts, which the mask must not "
                    f"count) and {length} are new. Pass a mask over all tokens, cached and new."
                )
            self.position_limit.check(prompt_length, past_length - prompt_length, length, attention_mask)
            placement = PromptPlacement(prompt_length, attention_mask)
            attention_mask = arguments["attention_mask"] = placement.insert_mask(attention_mask)
        else:
            self.position_limit.check(prompt_length, past_length - prompt_length, length)
        if position_ids is not None:
            arguments["position_ids"] = position_ids + prompt_length
        elif attention_mask is not None and "position_ids" in self._backbone_arguments:
            arguments["position_ids"] = positions_from_mask(attention_mask)[:, -length:]

    def after_backbone(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        return output if self._is_bypassed(kwargs) else self._strip(output)

    @torch.compiler.disable
    def _strip(self, output: Any) -> Any:
        thread = self.layer.thread
        call = thread.call
        if call is None:
            return output
        call.deep = None
        if call.is_backbone_only:
            thread.call = None
        placement, call.placement = call.placement, None
        if placement is None or output is None:
            return output
        # Contiguous, because a linear layer copies its weights for every row of an input that is not: here those of the
        # vocabulary.
        output["last_hidden_state"] = placement.strip(output["last_hidden_state"]).contiguous()
        if output.get("hidden_states") is not None:
            output["hidden_states"] = tuple(
                placement.strip(hidden_states) for hidden_states in output["hidden_states"]
            )
        if output.get("attentions") is not None:
            # Rows are the input's positions. Columns include the prompts, which keeps the attention to them visible.
            output["attentions"] = tuple(
                placement.strip(attention.transpose(1, 2)).transpose(1, 2) for attention in output["attentions"]
            )
        cache = output.get(self.cache_name)
        if cache is not None:
            setattr(cache, CACHE_ATTRIBUTE, placement.prompt_length)
        return output.to_tuple() if call.returns_tuple else output


def has_generate(model: nn.Module) -> bool:
    """Whether the model can generate text, in which case its labels are answers."""
    can_generate = getattr(model, "can_generate", None)
    return can_generate is not None and bool(can_generate()) and hasattr(type(model), "generate")


def cache_argument(names: Sequence[str]) -> str:
    """Name of the argument for the key-value cache among the arguments of a model: `cache`, or `past_key_values` up to
    transformers 5.23."""
    return "cache" if "cache" in names else "past_key_values"


def _calling_frame() -> FrameType | None:
    """The frame of torch that runs the hook which calls this function."""
    frame: FrameType | None = sys._getframe(1)
    # Between them are the hook's own frames and, for functions that are not compiled, one of torch's compiler.
    while frame is not None and (frame.f_code.co_filename == __file__ or "_dynamo" in frame.f_code.co_filename):
        frame = frame.f_back
    return frame


def _by_name(names: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    return {**dict(zip(names, args, strict=False)), **kwargs}
