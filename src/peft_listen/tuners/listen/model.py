"""The tuner: attaches prompt pools to a model's backbone, as a method of PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from ...four_bits import keep_backward_pass
from .backbone import check_layers, find_backbone
from .calls import SelectionRecord
from .checkpoints import (
    QueryLoading,
    check_can_be_saved,
    check_fits,
    name_recent_queries,
    rename_former_keys,
)
from .config import ListenConfig
from .generation import PromptGeneration
from .hooks import PromptHooks, has_generate
from .layer import ListenLayer
from .prompt_length import warn_of_other_lengths_in_training


# Name of the layer among the children of the backbone. It must not contain the prefix "listen_", by which PEFT
# recognizes the tensors of an adapter.
LAYER_NAME = "prompt_pool"


class ListenModel(BaseTuner):
    """
    Dynamic prompt selection for a frozen causal language model: LiSTEN (https://arxiv.org/abs/2505.18517).

    Created by [`~peft.get_peft_model`] from a [`ListenConfig`]. All methods can be called on the `PeftModel` as well. For
    a model without a `PeftModel` around it, such as that of a pipeline, the package has the functions `record_selections`,
    `use_prompt_length`, `set_prompt_length` and `prompt_embeds`.

    Several threads may call one model at the same time. `last_selection`, `key_loss`, `record_selections` and
    `use_prompt_length` belong to the calling thread; `set_prompt_length`, `set_adapter` and enabling or disabling
    adapters affect all threads.

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
    trainable params: 25,920 || all params: 50,656 || trainable%: 51.1687

    ```
    """

    prefix: str = "listen_"
    tuner_layer_cls = ListenLayer
    target_module_mapping: dict[str, list[str]] = {}

    # ------------------------------------------------------------------------------------------------- attaching

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        return peft_config  # `_prepare_model` finds the decoder, and no list of architectures is needed

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        assert isinstance(peft_config, ListenConfig)
        name, backbone = find_backbone(model, peft_config.backbone)
        check_layers(peft_config, backbone)
        attached = next((path for path, module in model.named_modules() if isinstance(module, ListenLayer)), None)
        if attached is not None and attached != f"{name}.{LAYER_NAME}":
            raise ValueError(
                f"This model's prompts are prepended at {attached.removesuffix('.' + LAYER_NAME)!r}, but the new adapter has "
                f"`backbone`={name!r}. Use the same backbone for all adapters of one model."
            )
        self._backbone_name = name
        if not peft_config.inference_mode:
            keep_backward_pass(model)

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
        layer = getattr(target, LAYER_NAME, None)
        new = layer is None
        if layer is None:
            layer = ListenLayer()
        embedding = target.get_input_embeddings()  # type: ignore[operator]
        trainable = adapter_name in self.active_adapters and not peft_config.inference_mode
        layer.update_layer(adapter_name, peft_config, embedding, target.config, trainable=trainable)
        if new:
            layer.train(self.model.training)
            target.add_module(LAYER_NAME, layer)
            hooks = layer.hooks = PromptHooks(layer, target, self.model)
            layer.query_loading = QueryLoading(self.model)
            if has_generate(self.model):
                layer.generation = PromptGeneration(hooks)
        if layer.hooks is not None:
            layer.hooks.update_layers()
        if not peft_config.inference_mode:
            warn_of_other_lengths_in_training(peft_config)
        selector = layer.pool_of(adapter_name).selector
        if peft_config.key_loss_weight == 0 and not selector.keys_receive_gradient and not peft_config.inference_mode:
            warnings.warn(
                f"With `key_loss_weight=0` the keys of the {peft_config.selector!r} selector are not trained and "
                "keep their initial values. Set a weight above 0, unless this is intended.",
                UserWarning,
                stacklevel=2,
            )

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keeps the pool in float32, unless the caller requests the base model's precision."""
        if autocast_adapter_dtype:
            super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype=True)
        else:
            embedding = self.model.get_submodule(self._backbone_name).get_input_embeddings()
            self.layer.pool_of(adapter_name).cast_parameters(embedding.weight.dtype)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        state_dict = rename_former_keys(state_dict)
        remapped: dict[str, torch.Tensor] = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        for path, layer in model.named_modules():
            if isinstance(layer, ListenLayer):
                remapped = name_recent_queries(remapped, path, adapter_name)
                check_fits(remapped, type(model).__name__, path, layer, adapter_name)
        return remapped

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        # Called for the adapter that is saved, and not where PEFT lists the tensors of a model that it loads into.
        check_can_be_saved(model, [adapter_name])
        saved: dict[str, torch.Tensor] = super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)
        return saved

    def _check_merge_allowed(self) -> None:
        raise ValueError(
            "LiSTEN prompts depend on the input and cannot be merged into the weights. Keep the adapter attached to the "
            "model, or remove it with `unload()`."
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
        self.layer.detach()
        delattr(self.model.get_submodule(self._backbone_name), LAYER_NAME)
        return super()._unload_and_optionally_merge(merge=False, progressbar=progressbar)  # type: ignore[return-value]

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Only `modules_to_save` of the base model are replaced. PEFT's implementation would also copy a weight, which
        # these modules need not have.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT calls this around forward and generate, and removes the argument afterwards.
        if kwargs.get("adapter_names") is not None:
            raise ValueError(
                "LiSTEN does not support `adapter_names`: the prompts of all rows of a batch are selected from one pool. "
                "Call `set_adapter` and run the rows of each adapter as a separate batch."
            )
        yield

    def train(self, mode: bool = True) -> ListenModel:
        """As in `torch.nn.Module`. In training mode, layers in 4 bits keep their backward pass."""
        super().train(mode)
        if mode:
            keep_backward_pass(self.model)
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `forward`, with prompts. In addition, it accepts `listen_query_mask`, `(batch_size,
        sequence_length)`: the positions of the input that form the query."""
        # PEFT up to 0.20 calls `self.model.forward`, which does not run the hooks that add the key loss.
        return self.model(*args, **kwargs)

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """The model's `generate`, with prompts. In addition, it accepts `listen_query_mask`, `(batch_size,
        sequence_length)`: the positions of the input that form the query."""
        return self.model.generate(*args, **kwargs)

    def prompt_embeds(self, **inputs: Any) -> dict[str, torch.Tensor]:
        """
        What the language model gets in `generate`: the embeddings of the selected prompts and of the input, audio
        included. The untouched language model generates the same tokens from them, here or in another program:

        ```python
        llm = AutoModelForCausalLM.from_pretrained(llm_name)  # without the adapter
        llm.generate(**model.prompt_embeds(**inputs), max_new_tokens=20)
        ```

        The language model does not run, except for the first layers of an adapter with `query_layer`.

        Args:
            inputs: the inputs of `generate`: `input_ids`, `attention_mask`, audio and so on, and `listen_query_mask`.

        Returns:
            `dict[str, torch.Tensor]`: `inputs_embeds`, `(batch_size, k + length, embedding_size)`, in the data type of the
            embeddings, and `attention_mask`, `(batch_size, k + length)`, with the padding of the input. `position_ids` is
            only there if it was given, or if the model has several axes of positions.

        Raises:
            ValueError: if embeddings cannot express what the adapter does (`value_layers`), if another active adapter
                changes the language model, or if the model does not generate text.
            NotImplementedError: for a language model that gets more than embeddings.
        """
        return self.layer.prompt_embeds(**inputs)

    # ------------------------------------------------------------------------------------------- prompts and pools

    @property
    def layer(self) -> ListenLayer:
        """The layer on the backbone that contains the pools."""
        layer: ListenLayer = getattr(self.model.get_submodule(self._backbone_name), LAYER_NAME)
        return layer

    @property
    def last_selection(self) -> SelectionRecord | None:
        """Selection of the calling thread's last prefill; see [`SelectionRecord`]. `None` before the first."""
        return self.layer.thread.last_selection

    @property
    def key_loss(self) -> torch.Tensor | None:
        """Key loss of the calling thread's last forward pass in training (mean over rows, unweighted), with its graph.

        If labels are passed, `outputs.loss` contains it already; add it yourself only to a custom loss.
        """
        per_row = self.layer.thread.key_loss_per_row
        return None if per_row is None else per_row.mean()

    def set_prompt_length(self, prompt_length: int, adapter_name: str | None = None) -> None:
        """Sets the number of prompts used in evaluation and generation, at any time and without reloading. With a fixed
        prompt length, training uses it too.

        Warns if the adapter was trained with other numbers of prompts, or will be.

        Args:
            prompt_length (`int`): from 1 to the adapter's `pool_size`.
            adapter_name (`str`, *optional*): the active adapter if not given.

        Raises:
            ValueError: if the pool holds fewer prompts (both numbers are named), if an adapter that is not trained yet has
                fewer shared prompts to add, or if there is no such adapter.
        """
        self.layer.set_prompt_length(prompt_length, adapter_name)

    @contextmanager
    def use_prompt_length(self, prompt_length: int, adapter_name: str | None = None) -> Iterator[None]:
        """[`set_prompt_length`] for the calling thread and the duration of a `with` block."""
        with self.layer.use_prompt_length(prompt_length, adapter_name):
            yield

    def begin_step(self, step: int | None, adapter_name: str | None = None) -> None:
        """
        Sets the optimizer step that the next forward passes belong to.

        The prompt length of a training step is a pure function of the configuration's seed and this number, so a
        resumed run draws the same prompt lengths as an uninterrupted one. `ListenCallback` calls this under a Trainer.
        Without it, steps are counted: a step counts when an optimizer that holds the adapter's keys or values has run
        its `step` (a step that gradient scaling skips does not count), or, in a loop without such an optimizer, when
        they have changed between two forward passes in training. An optimizer that changes them between the passes of
        one step, as SAM does, is not known before its first `step`, so its first step counts twice; call `begin_step` to
        count it once.

        Args:
            step (`int` or `None`): the optimizer step, from 0; `None` returns to counting.
            adapter_name (`str`, *optional*): the active adapter if not given.

        Raises:
            ValueError: if there is no such adapter.
        """
        self.layer.pool_of(adapter_name).begin_step(step)

    def init_keys_from(self, queries: torch.Tensor | Iterable[torch.Tensor], adapter_name: str | None = None) -> None:
        """
        Initializes the keys with cluster centers of real queries, which places every key near some of them (ours).

        Args:
            queries (`torch.FloatTensor` of shape `(num_queries, embedding_size)`, or an iterable of such tensors):
                queries of real inputs, e.g. `record.query` of [`record_selections`]. With fewer queries than keys, the
                remaining keys are queries with a little noise.
            adapter_name (`str`, *optional*): the active adapter if not given.

        Raises:
            ValueError: for another shape, an empty tensor, NaN or infinite values, or if there is no such adapter.
        """
        if not torch.is_tensor(queries):
            queries = torch.cat(list(queries))
        self.layer.pool_of(adapter_name).init_keys_from(queries)

    @contextmanager
    def record_selections(self) -> Iterator[list[SelectionRecord]]:
        """Collects the [`SelectionRecord`] of every prefill that the calling thread makes in a `with` block, on the CPU.

        ```python
        with model.record_selections() as records:
            model.generate(**inputs)
        ```
        """
        with self.layer.record_selections() as records:
            yield records
