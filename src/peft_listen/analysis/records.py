"""What an adapter chose for the rows of a data set, in one object and one file."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from ..tuners.listen import SelectionRecord, find_listen_layer
from .selections import SelectionLog


_FORMAT = "peft_listen.selection_records"
_VERSION = 1
_TENSORS = ("indices", "scores", "queries", "keys")


@dataclass(frozen=True, eq=False)
class SelectionRecords:
    """
    The selections for a data set, one row an input.

    Made by [`record_dataset`], or by [`from_records`] from what
    [`~peft_listen.ListenModel.record_selections`] has collected.

    Args:
        indices (`torch.LongTensor` of shape `(num_rows, k)`): the chosen prompts of each row, best first.
        scores (`torch.FloatTensor` of shape `(num_rows, k)`): the selector's score of each.
        queries (`torch.FloatTensor` of shape `(num_rows, embedding_size)`):
            the queries as the keys see them: centred, and whatever else the adapter does to them.
        keys (`torch.FloatTensor` of shape `(pool_size, embedding_size)`): the adapter's keys.
        tasks (`Sequence[str]` of length `num_rows`): each row's task.
        inputs (`Sequence[str]` of length `num_rows`, *optional*): what to call each row, such as its clip and question.
        config (`Mapping`, *optional*): the adapter's configuration, as JSON can hold it.

    Raises:
        ValueError: if the shapes do not fit, there is no row, an index lies outside the pool, or a number is not
            finite.
    """

    indices: torch.Tensor
    scores: torch.Tensor
    queries: torch.Tensor
    keys: torch.Tensor
    tasks: Sequence[str]
    inputs: Sequence[str] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
                    f"{num_rows} tasks, indices of shape {tuple(self.indices.shape)} and keys of shape "
                    f"{tuple(self.keys.shape)}."
                )
        if self.indices.numel() == 0:
            raise ValueError("There are no selections: at least one row with one prompt is needed.")
        if not 0 <= int(self.indices.min()) <= int(self.indices.max()) < self.pool_size:
            raise ValueError(
                f"`indices` run from {int(self.indices.min())} to {int(self.indices.max())}, but the pool has the "
                f"prompts 0 to {self.pool_size - 1}. Are these the keys of the adapter that made the selections?"
            )
        for name in ("scores", "queries", "keys"):
            if not bool(getattr(self, name).isfinite().all()):
                raise ValueError(f"`{name}` holds NaN or infinite values; look for broken inputs or weights.")
        if self.inputs and len(self.inputs) != num_rows:
            raise ValueError(f"There are {num_rows} tasks, but {len(self.inputs)} inputs; give one of each a row.")

    @classmethod
    def from_records(
        cls,
        records: Sequence[SelectionRecord],
        model: nn.Module,
        tasks: Sequence[str],
        inputs: Sequence[str] = (),
    ) -> SelectionRecords:
        """
        Args:
            records (`Sequence[SelectionRecord]`): one a batch, in the order of the rows.
            model (`nn.Module`): the model that made them, with the same adapter active.
            tasks (`Sequence[str]`): each row's task.
            inputs (`Sequence[str]`, *optional*): what to call each row.

        Raises:
            ValueError: if there are no records or not one row for each task, they differ in their number of prompts,
                or the model has no LISTEN adapter.
        """
        if not records:
            raise ValueError(
                "No selection was recorded. Is the adapter active (not in `disable_adapter()`), and did the model run?"
            )
        lengths = {record.indices.shape[1] for record in records}
        if len(lengths) > 1:
            raise ValueError(f"The records have different numbers of prompts, {sorted(lengths)}; record with one.")
        pool = find_listen_layer(model).pool_of()
        # Cloned, since training updates them in place.
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
        """Number of prompts that each row chose."""
        return int(self.indices.shape[1])

    @property
    def task_names(self) -> list[str]:
        """The tasks, sorted."""
        return sorted(set(self.tasks))

    def log(self) -> SelectionLog:
        """How often each task chose each prompt."""
        log = SelectionLog(pool_size=self.pool_size)
        log.add(self.indices, self.tasks)
        return log

    def usage(self, task: str | None = None) -> torch.Tensor:
        """
        Share of the rows, of a task or of all, that chose each prompt.

        Returns:
            `torch.FloatTensor` of shape `(pool_size,)`, from 0 to 1; it sums to k.

        Raises:
            KeyError: if there is no such task.
        """
        log = self.log()
        if task is not None and task not in log.counts:
            raise KeyError(f"There is no task {task!r} in the records; there are {self.task_names}.")
        rows = len(self.tasks) if task is None else Counter(self.tasks)[task]
        usage = torch.zeros(self.pool_size)
        for name, counts in log.counts.items():
            if task is None or name == task:
                usage[list(counts)] += torch.tensor(list(counts.values()), dtype=torch.float32)
        return usage / rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """
        Writes all to one safetensors file, whose metadata hold the tasks, inputs and configuration as JSON.

        Raises:
            OSError: if the file cannot be written; an older one then stays as it was.
        """
        target = Path(path)
        description = {"tasks": list(self.tasks), "inputs": list(self.inputs), "config": dict(self.config)}
        metadata = {
            "format": "pt",
            _FORMAT: str(_VERSION),
            "records": json.dumps(description, ensure_ascii=False, default=str),
        }
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        try:
            save_file(tensors, temporary, metadata=metadata)
            os.replace(temporary, target)
        except SafetensorError as error:
            raise OSError(f"{target} cannot be written: {error}") from error
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> SelectionRecords:
        """
        Reads what [`save`] has written.

        Raises:
            OSError: if the file cannot be read.
            ValueError: if it is no file of selection records, or of a later version of this library.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} is no file; expected one that `SelectionRecords.save` has written.")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                if _FORMAT not in metadata:
                    raise ValueError(
                        f"{path} holds no selection records; expected a file that `SelectionRecords.save` has written."
                    )
                if int(metadata[_FORMAT]) > _VERSION:
                    raise ValueError(
                        f"{path} was written by a later version of peft-listen (format {metadata[_FORMAT]}; this one "
                        f"reads up to {_VERSION}). Upgrade peft-listen."
                    )
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
        except SafetensorError as error:
            raise ValueError(f"{path} is no safetensors file, or is damaged ({error}). Record it again.") from error
        return cls(**tensors, **json.loads(metadata["records"]))
