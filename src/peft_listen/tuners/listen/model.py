"""The tuner: attaches a pool to a model's backbone and speaks PEFT's language."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from .backbone import find_backbone
from .config import ListenConfig
from .generation import PromptGeneration, has_generate
from .hooks import PromptHooks
from .layer import ListenLayer, SelectionRecord


# The child of the backbone that holds the pool. It must not contain the prefix "listen_", by which PEFT tells an
# adapter's tensors from the modules that hold them.
POOL_NAME = "prompt_pool"


class ListenModel(BaseTuner):
    """
    Dynamic prompt selection for a frozen causal language model: LiSTEN (https://arxiv.org/abs/2505.18517).

    Made by [`~peft.get_peft_model`] from a [`ListenConfig`]. Everything below can be called on the `PeftModel` too.

    Args:
        model (`nn.Module`): a causal language model of transformers, or a composite that contains one.
        config ([`ListenConfig`]): the configuration of the first adapter.
        adapter_name (`str`): its name.

    Example:

    ```python
    >>> import peft_listen
    >>> from peft import get_peft_model
    >>> from transformers import LlamaConfig, LlamaForCausalLM

    >>> sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    >>> llm = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=4))
    >>> model = get_peft_model(llm, peft_listen.ListenConfig(pool_size=400, selector="similarity"))
    >>> model.print_trainable_parameters()
    trainable params: 25,600 || all params: 50,336 || trainable%: 50.8582

    ```
    """

    prefix: str = "listen_"
    tuner_layer_cls = ListenLayer
    target_module_mapping: dict[str, list[str]] = {}

    # ------------------------------------------------------------------------------------------------- attaching

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config  # the decoder is found by `_prepare_model`, and no list of architectures is needed

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        assert isinstance(peft_config, ListenConfig)
        name, _ = find_backbone(model, peft_config.backbone)
        attached = next((path for path, module in model.named_modules() if isinstance(module, ListenLayer)), None)
        if attached is not None and attached != f"{name}.{POOL_NAME}":
            raise ValueError(
                f"This model's prompts are prepended at {attached.removesuffix('.' + POOL_NAME)!r}; an adapter with "
                f"`backbone`={name!r} cannot join them. Use the same backbone for all adapters of one model."
            )
        self._backbone_name = name

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> bool:  # type: ignore[override]
        return key == self._backbone_name

    def _create_and_replace(  # type: ignore[override]
        self,
        peft_config: ListenConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        layer = getattr(target, POOL_NAME, None)
        new = layer is None
        if layer is None:
            layer = ListenLayer()
        embedding = target.get_input_embeddings()  # type: ignore[operator]
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        layer.update_layer(adapter_name, peft_config, embedding, target.config, trainable=trainable)
        if new:
            layer.train(self.model.training)
            target.add_module(POOL_NAME, layer)
            layer.hooks = PromptHooks(layer, target, self.model)
            if has_generate(self.model):
                layer.generation = PromptGeneration(layer.hooks)
        selector = layer.states[adapter_name].selector
        if peft_config.key_loss_weight == 0 and not selector.keys_receive_gradient and not peft_config.inference_mode:
            warnings.warn(
                f"With `key_loss_weight=0` nothing moves the keys of the {peft_config.selector!r} selector: they stay "
                "where they began. Set a weight above 0, unless that is what you want.",
                UserWarning,
                stacklevel=2,
            )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """The pool is in float32, unless the caller wants it in the base model's precision."""
        if autocast_adapter_dtype:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=True)
        else:
            self.layer.cast_pool(adapter_name, self.layer.hooks.backbone.get_input_embeddings().weight.dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        saved = {key: tensor for key, tensor in remapped.items() if f".{POOL_NAME}.{cls.prefix}" in key}
        for path, layer in model.named_modules():
            if not isinstance(layer, ListenLayer) or not saved:
                continue
            name = f"{path}.listen_keys.{adapter_name}"
            if not any(key.endswith(name) for key in saved):
                raise ValueError(
                    f"The adapter was made for another architecture: its prompts are at "
                    f"{sorted({key.split(f'.{POOL_NAME}.')[0] for key in saved})}, those of "
                    f"{type(model).__name__} at {path.removesuffix('.' + POOL_NAME)!r}. Load the base model that the "
                    "adapter's configuration names."
                )
            for key, tensor in saved.items():
                size = layer.listen_keys[adapter_name].shape[-1]
                if tensor.ndim > 0 and ".listen_usage." not in key and tensor.shape[-1] != size:
                    raise ValueError(
                        f"The adapter was made for embeddings of size {tensor.shape[-1]} ({key!r}), but this base "
                        f"model has embeddings of size {size}. Load the base model that the adapter's configuration "
                        "names."
                    )
        return remapped

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "LISTEN prompts depend on the input and cannot be merged into the weights. Keep the adapter beside the "
            "model, or take it off with `unload()`."
        )

    def _unload_and_optionally_merge(  # type: ignore[override]
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> nn.Module:
        if merge:
            self._check_merge_allowed()
        layer = self.layer
        layer.hooks.remove()
        if layer.generation is not None:
            layer.generation.remove()
        delattr(self.model.get_submodule(self._backbone_name), POOL_NAME)
        return super()._unload_and_optionally_merge(merge=False, progressbar=progressbar)  # type: ignore[return-value]

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Of the base model only `modules_to_save` are ever replaced, and these need not have a weight of their own, which
        # PEFT would copy.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT calls this around forward and generate, and drops the argument afterwards.
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "LISTEN does not support `adapter_names`: the rows of one batch choose their prompts from one pool. "
                "Call `set_adapter` and run the rows of each adapter as a batch of their own."
            )
        yield

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `generate`, with prompts. It takes `listen_query_mask`, `(batch_size, sequence_length)`, besides:
        the positions of the input that make the query."""
        return self.model.generate(*args, **kwargs)

    # ------------------------------------------------------------------------------------------- prompts and pools

    @property
    def layer(self) -> ListenLayer:
        """The pool's home on the backbone."""
        layer: ListenLayer = getattr(self.model.get_submodule(self._backbone_name), POOL_NAME)
        return layer

    @property
    def last_selection(self) -> SelectionRecord | None:
        """What the last prefill chose; see [`SelectionRecord`]. `None` before the first."""
        return self.layer.last_selection

    @property
    def key_loss(self) -> torch.Tensor | None:
        """Key loss of the last forward pass in training (mean over rows, before its weight), with its graph.

        It is in `outputs.loss` already when labels are given; add it by hand only to a loss of your own.
        """
        per_row = self.layer.key_loss_per_row
        return None if per_row is None else per_row.mean()

    def set_prompt_length(self, prompt_length: int, adapter_name: str | None = None) -> None:
        """Sets the number of prompts used in evaluation and generation, at any time and without reloading.

        Args:
            prompt_length (`int`): from 1 to the adapter's `pool_size`.
            adapter_name (`str`, *optional*): the active adapter if not given.

        Raises:
            ValueError: if the pool holds fewer prompts (both numbers are named), or if there is no such adapter.
        """
        _, state = self.layer.state_of(adapter_name)
        state.prompt_length.set_fixed(prompt_length)
        state.config.prompt_length = prompt_length

    @contextmanager
    def use_prompt_length(self, prompt_length: int, adapter_name: str | None = None) -> Iterator[None]:
        """[`set_prompt_length`] for the duration of a `with` block."""
        name, state = self.layer.state_of(adapter_name)
        before = state.prompt_length.fixed
        self.set_prompt_length(prompt_length, name)
        try:
            yield
        finally:
            self.set_prompt_length(before, name)

    def begin_step(self, step: int | None, adapter_name: str | None = None) -> None:
        """
        Tells which optimizer step the coming forward passes belong to.

        The prompt length of a training step is a pure function of the configuration's seed and this number, so a
        resumed run draws what the uninterrupted one would have. `ListenCallback` calls this under a Trainer. Without
        it, a step ends when the optimizer has changed the values.

        Args:
            step (`int` or `None`): the optimizer step, from 0; `None` goes back to counting by itself.
            adapter_name (`str`, *optional*): the active adapter if not given.
        """
        name, _ = self.layer.state_of(adapter_name)
        self.layer.begin_step(name, step)

    def init_keys_from(self, queries: torch.Tensor | Iterable[torch.Tensor], adapter_name: str | None = None) -> None:
        """
        Starts the keys at the centres of a k-means clustering of real queries, so that none starts dead (ours).

        Args:
            queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`, or an iterable of such):
                queries of real inputs, e.g. `record.query` of [`record_selections`]. With fewer queries than keys,
                the surplus keys are queries with a little noise.
            adapter_name (`str`, *optional*): the active adapter if not given.

        Raises:
            ValueError: for another shape, no row at all, or NaN.
        """
        name, _ = self.layer.state_of(adapter_name)
        if not torch.is_tensor(queries):
            queries = torch.cat(list(queries))
        self.layer.init_keys_from(name, queries)

    @contextmanager
    def record_selections(self) -> Iterator[list[SelectionRecord]]:
        """Collects the [`SelectionRecord`] of every prefill in a `with` block, moved to the CPU.

        ```python
        with model.record_selections() as records:
            model.generate(**inputs)
        ```
        """
        with self.layer.record_selections() as records:
            yield records
