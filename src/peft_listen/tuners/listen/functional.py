"""
Functions for a model with a LiSTEN adapter, no matter how the adapter was added: a `PeftModel`, a model whose
`load_adapter` was called, or the model of a pipeline. The last two have no [`ListenModel`] with methods of these names.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from .calls import SelectionRecord
from .layer import find_listen_layer


@contextmanager
def record_selections(model: nn.Module) -> Iterator[list[SelectionRecord]]:
    """
    Collects the [`SelectionRecord`] of every prefill that the calling thread makes in a `with` block, on the CPU.

    Args:
        model (`nn.Module`): a model with a LiSTEN adapter, such as `pipe.model`.

    Raises:
        ValueError: if the model has no LiSTEN adapter.

    Example:

    ```python
    with record_selections(pipe.model) as records:
        pipe("dog.wav", text="What do you hear?")
    ```
    """
    with find_listen_layer(model).record_selections() as records:
        yield records


@contextmanager
def use_prompt_length(model: nn.Module, prompt_length: int, adapter_name: str | None = None) -> Iterator[None]:
    """
    Sets the number of prompts for the calling thread and the duration of a `with` block.

    Args:
        model (`nn.Module`): a model with a LiSTEN adapter, such as `pipe.model`.
        prompt_length (`int`): from 1 to the adapter's `pool_size`.
        adapter_name (`str`, *optional*): the active adapter if not given.

    Raises:
        ValueError: if the pool holds fewer prompts (both numbers are named), or if there is no such adapter.
    """
    with find_listen_layer(model).use_prompt_length(prompt_length, adapter_name):
        yield


def set_prompt_length(model: nn.Module, prompt_length: int, adapter_name: str | None = None) -> None:
    """
    Sets the number of prompts used in evaluation and generation, at any time and without reloading.

    Args:
        model (`nn.Module`): a model with a LiSTEN adapter, such as `pipe.model`.
        prompt_length (`int`): from 1 to the adapter's `pool_size`.
        adapter_name (`str`, *optional*): the active adapter if not given.

    Raises:
        ValueError: if the pool holds fewer prompts (both numbers are named), or if there is no such adapter.
    """
    find_listen_layer(model).set_prompt_length(prompt_length, adapter_name)


def prompt_embeds(model: nn.Module, **inputs: Any) -> dict[str, torch.Tensor]:
    """
    What the language model gets in `generate`: the embeddings of the selected prompts and of the input, audio included.
    The untouched language model generates the same tokens from them; see [`ListenModel.prompt_embeds`].

    Args:
        model (`nn.Module`): a model with a LiSTEN adapter, such as `pipe.model`.
        inputs: the inputs of `generate`.

    Returns:
        `dict[str, torch.Tensor]`: `inputs_embeds`, `(batch_size, k + length, embedding_size)`, and `attention_mask`,
        `(batch_size, k + length)`; arguments of the `generate` of the language model.

    Raises:
        ValueError: if the model has no LiSTEN adapter, or for the reasons of [`ListenModel.prompt_embeds`].
        NotImplementedError: for a language model that gets more than embeddings.
    """
    return find_listen_layer(model).prompt_embeds(**inputs)
