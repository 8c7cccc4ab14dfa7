"""The selections of an adapter for the rows of a data set, in one object that can be saved to one file."""

from __future__ import annotations

import json
import os
import reprlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..files import atomic_path, check_output_file
from ..tuners.listen import SelectionRecord, find_listen_layer
from ..unicode import half_surrogate_problem
from .usage import PromptUsage


_FORMAT = "peft_listen.selection_records"
_VERSION = 1
_TENSORS = ("indices", "scores", "queries", "keys")


@dataclass(frozen=True, eq=False)
class SelectionRecords:
    """
    The selections for a data set, one row per input.

    Created by [`record_dataset`], or by [`from_records`] from the records that
    [`~peft_listen.ListenModel.record_selections`] collects.

    Args:
        indices (`torch.LongTensor` of shape `(num_rows, k)`): selected prompts of each row, best first.
        scores (`torch.FloatTensor` of shape `(num_rows, k)`): the selector's score of each selected prompt.
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`):
            the queries that are compared with the keys, after any centering by the adapter.
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): keys of the adapter.
        tasks (`Sequence[str]` of length `num_rows`): task of each row.
        inputs (`Sequence[str]` of length `num_rows`, *optional*): name of each row, such as its clip and question.
        config (`Mapping`, *optional*): configuration of the adapter, with JSON-serializable values, and if it is known
            `init_keys_at_steps`, the steps at which its training has initialized the keys.

    Raises:
        ValueError: if a field has the wrong type, the shapes do not match, there are no rows, an index is outside the
            pool, a value is not finite, or a text is not valid Unicode.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    tasks: Sequence[str]
    inputs: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_types()
        self._check_values()

    def _check_types(self) -> None:
        for name in _TENSORS:
            value, is_indices = getattr(self, name), name == "indices"
            if not isinstance(value, torch.Tensor):
                raise ValueError(f"`{name}` must be a tensor, got a {type(value).__name__}.")
            if value.is_floating_point() == is_indices or value.dtype == torch.bool or value.is_complex():
                kind = "integers" if is_indices else "floating-point numbers"
                raise ValueError(f"`{name}` must contain {kind}, got a tensor of dtype {value.dtype}.")
            if value.ndim != 2:
                raise ValueError(f"`{name}` has the shape {tuple(value.shape)}, but two dimensions are expected.")
        for name in ("tasks", "inputs"):
            texts = getattr(self, name)
            if isinstance(texts, (str, bytes, Mapping)) or not (
                hasattr(texts, "__len__") and hasattr(texts, "__iter__")
            ):
                raise ValueError(f"`{name}` must be a list with one string per row, got a {type(texts).__name__}.")
            for row, text in enumerate(texts):
                if not isinstance(text, str):
                    raise ValueError(f"`{name}[{row}]` must be a string, got a {type(text).__name__}.")
                if problem := half_surrogate_problem(text):
                    raise ValueError(f"`{name}[{row}]` {problem}")
        if not isinstance(self.config, Mapping) or not all(isinstance(name, str) for name in self.config):
            raise ValueError(
                f"`config` must be a dictionary from names to values, got a {type(self.config).__name__} "
                f"({reprlib.repr(self.config)})."
            )

    def _check_values(self) -> None:
        num_rows, embedding_size = len(self.tasks), self.keys.shape[-1]
        expected = {
            "indices": (num_rows, *self.indices.shape[1:2]),
            "scores": tuple(self.indices.shape),
            "queries": (num_rows, embedding_size),
            "keys": (*self.keys.shape[:1], embedding_size),
        }
        for name, shape in expected.items():
            if tuple(getattr(self, name).shape) != shape or len(shape) != 2:
                raise ValueError(
                    f"`{name}` has the shape {tuple(getattr(self, name).shape)}, but {shape} is expected for "
                    f"{num_rows} tasks, `indices` of shape {tuple(self.indices.shape)} and `keys` of shape "
                    f"{tuple(self.keys.shape)}."
                )
        if self.indices.numel() == 0:
            raise ValueError("There are no selections: at least one row with one prompt is needed.")
        if not 0 <= int(self.indices.min()) <= int(self.indices.max()) < self.pool_size:
            raise ValueError(
                f"`indices` run from {int(self.indices.min())} to {int(self.indices.max())}, but the pool has the "
                f"prompts 0 to {self.pool_size - 1}. Pass the keys of the adapter that made the selections."
            )
        for name in ("scores", "queries", "keys"):
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(f"`{name}` contains NaN or infinite values; check the inputs and the weights.")
        if len(self.inputs) and len(self.inputs) != num_rows:
            raise ValueError(f"There are {num_rows} tasks, but {len(self.inputs)} inputs; pass one of each per row.")

    @classmethod
    def from_records(
        cls,
        records: Sequence[SelectionRecord],
        model: nn.Module,
        tasks: Sequence[str],
        inputs: Sequence[str] = (),
    ) -> SelectionRecords:
        """
        Joins the records of several batches.

        Args:
            records (`Sequence[SelectionRecord]`): one per batch, in the order of the rows.
            model (`nn.Module`): model that made the selections, with the same adapter active.
            tasks (`Sequence[str]` of length `num_rows`): task of each row.
            inputs (`Sequence[str]` of length `num_rows`, *optional*): name of each row.

        Returns:
            [`SelectionRecords`] on the CPU.

        Raises:
            ValueError: if there are no records, the number of rows differs from the number of tasks, the records differ
                in their number of prompts, or the model has no LiSTEN adapter.
        """
        if not records:
            raise ValueError(
                "No selection was recorded. Run the model while the adapter is active, outside `disable_adapter()`."
            )
        lengths = {record.indices.shape[1] for record in records}
        if len(lengths) > 1:
            raise ValueError(
                f"The records have different numbers of prompts, {sorted(lengths)}. Record all rows with the same one."
            )
        pool = find_listen_layer(model).pool_of()
        # Cloned because further training changes the keys in place.
        keys = pool.keys.detach().float().cpu().clone()
        queries = torch.cat([record.query.float().cpu() for record in records])
        config = pool.config.to_dict()
        return cls(
            indices=torch.cat([record.indices.cpu() for record in records]),
            scores=torch.cat([record.scores.float().cpu() for record in records]),
            queries=pool.normalize_query(queries).detach(),
            keys=keys,
            tasks=list(tasks),
            inputs=list(inputs),
            config=json.loads(json.dumps(config, default=str)),
        )

    @property
    def pool_size(self) -> int:
        """Number of prompts in the pool."""
        return int(self.keys.shape[0])

    @property
    def prompt_length(self) -> int:
        """Number of prompts selected for each row."""
        return int(self.indices.shape[1])

    @property
    def task_names(self) -> list[str]:
        """Names of the tasks, sorted."""
        return sorted(set(self.tasks))

    def usage(self) -> PromptUsage:
        """Counts how often each task selected each prompt."""
        usage = PromptUsage(pool_size=self.pool_size)
        usage.add(self.indices, self.tasks)
        return usage

    def selection_rates(self, task: str | None = None) -> torch.Tensor:
        """
        Computes the fraction of rows that select each prompt.

        Args:
            task (`str`, *optional*): task whose rows are counted. Defaults to all tasks.

        Returns:
            `torch.FloatTensor` of shape `(pool_size,)`, from 0 to 1; the values add up to k.

        Raises:
            KeyError: if the records contain no such task.
        """
        if task is not None and task not in self.tasks:
            raise KeyError(f"There is no task {task!r} in the records; the tasks are {self.task_names}.")
        rows = len(self.tasks) if task is None else Counter(self.tasks)[task]
        rates = torch.zeros(self.pool_size, device="cpu")
        for name, counts in self.usage().counts.items():
            if task is None or name == task:
                rates[list(counts)] += torch.tensor(list(counts.values()), dtype=torch.float32, device="cpu")
        return rates / rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Writes the records to one safetensors file, with the tasks, inputs and configuration as JSON in its metadata.

        Args:
            path (`str` or `os.PathLike`): file to write.

        Raises:
            OSError: if the file cannot be written; an existing file then remains unchanged.
            ValueError: if a value has become invalid since the records were created, for instance NaN.
        """
        check_output_file(path)
        try:
            self._check_values()
        except ValueError as error:
            raise ValueError(f"{os.fspath(path)} was not written: {error}") from error
        description = {"tasks": list(self.tasks), "inputs": list(self.inputs), "config": dict(self.config)}
        metadata = {
            "format": "pt",
            _FORMAT: str(_VERSION),
            "records": json.dumps(description, default=str),
        }
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata=metadata)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SelectionRecords:
        """
        Reads a file written by [`save`].

        Args:
            path (`str` or `os.PathLike`): file to read.

        Returns:
            [`SelectionRecords`] on the CPU.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it does not contain selection records, or these are damaged or not finite (the message contains
                the path), or it was written by a newer version of this library.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is not a file; expected one written by `SelectionRecords.save`.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise ValueError(
                        f"{path} does not contain selection records; expected a file written by "
                        "`SelectionRecords.save`."
                    )
                _check_version(path, metadata[_FORMAT])
                missing = set(_TENSORS).difference(file.keys())
                if missing:
                    raise ValueError(f"{path} is damaged: it has no {sorted(missing)}. Record the selections again.")
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except SafetensorError as error:
            raise ValueError(
                f"{path} is not a safetensors file, or is damaged ({error}). Record the selections again."
            ) from error
        try:
            return cls(**tensors, **_description(metadata.get("records")))
        except ValueError as error:
            raise ValueError(
                f"{path} does not contain valid selection records: {error} Record the selections again."
            ) from error


def _check_version(path: Path, text: str) -> None:
    try:
        version = int(text)
    except ValueError:
        version = 0
    if version < 1:
        raise ValueError(
            f"{path} is damaged: its format is {reprlib.repr(text)}, expected an integer from 1. Record the selections "
            "again."
        )
    if version > _VERSION:
        raise ValueError(
            f"{path} was written by a newer version of peft-listen (format {version}; this version reads formats up to "
            f"{_VERSION}). Upgrade peft-listen."
        )


def _description(header: str | None) -> dict[str, Any]:
    """Parses the tasks, inputs and configuration, of which [`SelectionRecords`] checks the types."""
    if header is None:
        raise ValueError("the metadata has no `records`, which describe the rows.")
    try:
        description = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the `records` of the metadata are not readable JSON ({error}).") from error
    names = {"tasks", "inputs", "config"}
    if not isinstance(description, dict) or description.keys() != names:
        found = sorted(description) if isinstance(description, dict) else f"a {type(description).__name__}"
        raise ValueError(
            f"the `records` of the metadata must be a JSON object with {sorted(names)}, got {reprlib.repr(found)}."
        )
    return description
