"""Renames the tensors of adapters from earlier versions, and checks that a saved adapter fits the model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from .layer import ListenLayer


# Early versions kept one dictionary per kind of tensor in the layer, instead of one pool per adapter.
_FORMER_NAMES = {
    "listen_keys": "listen_pools.keys",
    "listen_values": "listen_pools.values",
    "listen_shared_values": "listen_pools.shared_values",
    "listen_query_mean": "listen_pools.query_mean",
    "listen_query_variance": "listen_pools.query_variance",
    "listen_step": "listen_pools.saved_step",
}
# Tensors of removed options. The configuration rejects adapters that depend on them.
_REMOVED_TENSORS = ("listen_usage",)

# Method of a model of transformers.
_READS_TENSORS = "_load_pretrained_model"


def rename_former_keys(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """
    Renames the tensors of an adapter that was saved by an earlier version.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): tensors by their names in the file, without the adapter's name.

    Returns:
        `dict[str, torch.Tensor]`: the same tensors by their names in this version.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        path, _, name = key.rpartition(".")
        if name not in _REMOVED_TENSORS:
            renamed[f"{path}.{_FORMER_NAMES[name]}" if name in _FORMER_NAMES else key] = tensor
    return renamed


def name_recent_queries(
    state_dict: Mapping[str, torch.Tensor], path: str, adapter_name: str
) -> dict[str, torch.Tensor]:
    """
    Inserts the adapter's name into the name of the buffer `recent_queries`. PEFT does not map it, because a new
    adapter does not have this buffer.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): tensors by their names in the model.
        path (`str`): dotted path of the layer in the model.
        adapter_name (`str`): the adapter that they are loaded into.
    """
    return {
        f"{path}.listen_pools.{adapter_name}.recent_queries"
        if key.endswith(".listen_pools.recent_queries")
        else key: tensor
        for key, tensor in state_dict.items()
    }


class QueryLoading:
    """
    Makes transformers' own `load_adapter` load the buffer `recent_queries`, which it reports as unexpected because a new
    adapter does not have it. It wraps the method that `load_adapter` reads the tensors with.

    Args:
        model (`nn.Module`): the model that the adapters are loaded into.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        if hasattr(type(model), _READS_TENSORS):
            setattr(model, _READS_TENSORS, self)

    def remove(self) -> None:
        """Restores the model's own method."""
        self._model.__dict__.pop(_READS_TENSORS, None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = getattr(type(self._model), _READS_TENSORS)(*args, **kwargs)
        info = result[0] if isinstance(result, tuple) else result
        unexpected: set[str] = getattr(info, "unexpected_keys", set())
        for key in [key for key in unexpected if key.endswith(".recent_queries") and ".listen_pools." in key]:
            pool: Any = self._model.get_submodule(key.rpartition(".")[0])
            queries = _find_queries(kwargs.get("state_dict"), kwargs.get("checkpoint_files"))
            if queries is not None and queries.ndim == 2 and queries.shape[1] == pool.query_mean.shape[0]:
                pool.remember_queries(queries, maximum=len(queries))
                unexpected.remove(key)
        return result


def _find_queries(state_dict: Mapping[str, torch.Tensor] | None, files: Sequence[str] | None) -> torch.Tensor | None:
    for key, tensor in (state_dict or {}).items():
        if key.endswith("recent_queries"):
            return tensor
    for file in files or ():
        if file.endswith(".safetensors"):
            with safe_open(file, framework="pt") as opened:
                for key in opened.keys():
                    if key.endswith("recent_queries"):
                        queries: torch.Tensor = opened.get_tensor(key)
                        return queries
    return None


def check_fits(
    state_dict: Mapping[str, torch.Tensor], model_name: str, path: str, layer: ListenLayer, adapter_name: str
) -> None:
    """
    Checks that a saved adapter belongs to this base model.

    Args:
        state_dict (`Mapping[str, torch.Tensor]`): tensors by their names in the model.
        model_name (`str`): class of the model, for the message.
        path (`str`): dotted path of the layer in the model.
        layer ([`ListenLayer`]): the layer that the tensors are loaded into.
        adapter_name (`str`): the adapter that they are loaded into.

    Raises:
        ValueError: if the tensors are for another module, or for embeddings of another size.
    """
    layer_name = path.rpartition(".")[2]
    saved = {key: tensor for key, tensor in state_dict.items() if f".{layer_name}.listen_" in key}
    if not saved:
        return
    if not any(key.endswith(f"{path}.listen_pools.{adapter_name}.keys") for key in saved):
        raise ValueError(
            f"The adapter was made for another architecture: its prompts are at "
            f"{sorted({key.split(f'.{layer_name}.')[0] for key in saved})}, those of {model_name} at "
            f"{path.removesuffix('.' + layer_name)!r}. Load the base model that the adapter's configuration names."
        )
    size = layer.pool_of(adapter_name).keys.shape[-1]
    for key, tensor in saved.items():
        if f".listen_pools.{adapter_name}.deep_" in key:
            continue  # as wide as the decoder's layers
        if tensor.ndim > 0 and tensor.shape[-1] != size:
            raise ValueError(
                f"The adapter was made for embeddings of size {tensor.shape[-1]} ({key!r}), but this base model has "
                f"embeddings of size {size}. Load the base model that the adapter's configuration names."
            )


def check_can_be_saved(model: nn.Module, adapter_names: Collection[str] | None = None) -> None:
    """
    Checks that the pools of a model are finite.

    Args:
        model (`nn.Module`): the model with the adapters.
        adapter_names (`Collection[str]`, *optional*): the adapters to be saved; all if not given.

    Raises:
        ValueError: if one of them contains NaN or infinite values.
    """
    for layer in model.modules():
        if isinstance(layer, ListenLayer):
            for name in layer.listen_pools:
                if adapter_names is None or name in adapter_names:
                    layer.pool_of(name).check_finite("saved")
