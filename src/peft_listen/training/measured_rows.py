"""Rows of the training data on which collapse is measured: the same rows each time, in evaluation mode."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import IterableDataset

from ..analysis.collapse import collapse_measures
from ..tuners.listen import ListenModel


# Inputs of the encoders of an `AudioListenForCausalLM`.
_AUDIO_INPUTS = ("input_features", "input_features_mask", "sound_input_values", "sound_attention_mask")


class MeasuredRows:
    """
    Some rows of the training data, on which collapse is measured.

    They are spread evenly over a dataset that has a length, if the collator makes batches of the model's arguments. Of an
    iterable dataset, and where the trainer makes the arguments from its batches, they are the first rows of the run, which
    are collected while it trains on them. The outputs of frozen encoders are computed once. Reading the rows does not
    change the random states of python, NumPy and torch.

    Args:
        tuner ([`ListenModel`]): the tuner of the model that is trained.
        dataloader (`DataLoader`, *optional*): that of the training data.
        num_rows (`int`, defaults to 32): number of rows.
    """

    def __init__(self, tuner: ListenModel, dataloader: Any = None, num_rows: int = 32) -> None:
        self._tuner = tuner
        self._num_rows = num_rows
        self._batches: list[dict[str, Any]] = []  # on the CPU
        self._count = 0
        self._handle: Any = None
        batches = _read_rows(dataloader, num_rows)
        if batches is None:
            # Prepended: the tuner's own hook removes the mask of the query from the arguments.
            self._handle = self._language_model.register_forward_pre_hook(
                self._collect, with_kwargs=True, prepend=True
            )
            return
        takes = _named_arguments(self._language_model)
        for batch in batches:
            self._add({name: value for name, value in batch.items() if takes is None or name in takes})

    def __len__(self) -> int:
        return self._count

    def close(self) -> None:
        """Stops collecting rows."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def measures(self, autocast_dtype: torch.dtype | None = None) -> dict[str, float]:
        """
        Measures of collapse for the present state of the model, see
        [`~peft_listen.analysis.collapse.collapse_measures`]. Empty without rows, and while no adapter is active.

        Args:
            autocast_dtype (`torch.dtype`, *optional*): that of the training's autocast, if it has one. A query from a hidden
                layer runs layers of the decoder, and layers of several dtypes run under autocast only.
        """
        layer = self._tuner.layer
        pool, hooks = layer.active_pool, layer.hooks
        if pool is None or hooks is None or not self._batches:
            return {}
        device = next(weight.device for weight in self._language_model.parameters() if not weight.is_meta)
        autocast = torch.autocast(device.type, autocast_dtype, enabled=autocast_dtype is not None)
        with _evaluation_mode(self._language_model), autocast:
            outputs = [hooks.selection_for(**_moved(batch, device)) for batch in self._batches]
            queries = pool.normalize_query(torch.cat([output.query.cpu() for output in outputs]))
        indices = torch.cat([output.selection.indices.cpu() for output in outputs])
        return collapse_measures(queries, pool.keys.detach().float().cpu(), indices)

    @property
    def _language_model(self) -> nn.Module:
        hooks = self._tuner.layer.hooks
        assert hooks is not None
        return hooks.language_model

    def _collect(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._tuner.layer.pool_of().is_training_step and not args and _has_inputs(kwargs):
            self._add({name: _detached(value) for name, value in kwargs.items()})
        if self._count >= self._num_rows:
            self.close()

    def _add(self, batch: Mapping[str, Any]) -> None:
        inputs = batch["inputs_embeds"] if batch.get("input_ids") is None else batch["input_ids"]
        self._batches.append(_moved(self._with_encoder_outputs(dict(batch)), torch.device("cpu")))
        self._count += len(inputs)

    @torch.no_grad()
    def _with_encoder_outputs(self, batch: dict[str, Any]) -> dict[str, Any]:
        if batch.get("input_features") is None:
            return batch
        from ..models.audio_listen import AudioListenForCausalLM
        from ..models.audio_listen.parts import SOUND, SPEECH

        model = self._language_model
        if not isinstance(model, AudioListenForCausalLM) or not SPEECH.is_frozen(model):
            return batch
        if model.model.sound_tower is not None and not SOUND.is_frozen(model):
            return batch
        audio = {name: batch.pop(name) for name in _AUDIO_INPUTS if name in batch}
        with _evaluation_mode(model):
            features = model.get_encoder_features(**_moved(audio, model.device))
        return batch | features._asdict()


def _read_rows(dataloader: Any, num_rows: int) -> list[Mapping[str, Any]] | None:
    """Batches of one row each, because a collator need not pad, or `None` if the model's arguments cannot be read from the
    data loader."""
    dataset = getattr(dataloader, "dataset", None)
    if dataset is None or isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        return None
    size = min(num_rows, len(dataset))
    batches: list[Mapping[str, Any]] = []
    with _unchanged_random_states():
        for index in (position * len(dataset) // size for position in range(size)):
            batch = dataloader.collate_fn([dataset[index]])
            if not isinstance(batch, Mapping) or not _has_inputs(batch):
                return None
            batches.append(batch)
    return batches


def _has_inputs(batch: Mapping[str, Any]) -> bool:
    return batch.get("input_ids") is not None or batch.get("inputs_embeds") is not None


def _named_arguments(model: nn.Module) -> frozenset[str] | None:
    """Names of the arguments of `forward`; `None` if it takes any."""
    parameters = inspect.signature(model.forward).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


@contextmanager
def _unchanged_random_states() -> Iterator[None]:
    """Restores the random states, so that a dataset or collator that draws does not change the draws of the training."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():  # that of the CPU and of all CUDA devices
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Switches all modules to evaluation mode, and back to their own: `train()` would also switch those that the caller has
    switched off, and tells the pool to expect another optimizer."""
    modes = {module: module.training for module in model.modules()}
    for module in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _detached(value: Any) -> Any:
    return value.detach() if torch.is_tensor(value) else value


def _moved(batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    return {name: value.to(device) if torch.is_tensor(value) else value for name, value in batch.items()}
