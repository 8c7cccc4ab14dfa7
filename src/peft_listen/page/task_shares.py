"""Which tasks usually select a prompt, from selections that were recorded with the adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..analysis import SelectionRecords
from ..run_folder import SELECTIONS_NAME, find_run
from ..serving import ServedModels
from .variants import Variant, active


@dataclass(frozen=True)
class TaskShares:
    """
    How often each task selects each prompt.

    Attributes:
        rates (`dict[str, torch.FloatTensor]`): for each task, the fraction of its rows that select each prompt, `(pool_size,)`.
        num_rows (`int`): number of recorded rows.
        prompt_length (`int`): number of prompts that each of these rows selected.
    """

    rates: Mapping[str, torch.Tensor]
    num_rows: int
    prompt_length: int

    @classmethod
    def from_records(cls, records: SelectionRecords) -> TaskShares:
        """Counts the selections of each task."""
        rates = {task: records.selection_rates(task) for task in records.task_names}
        return cls(rates, len(records.tasks), records.prompt_length)

    def tasks_of(self, prompt: int) -> list[tuple[str, float]]:
        """The tasks that select a prompt with the fraction of their rows that do so, the most frequent first."""
        found = [(task, float(rates[prompt])) for task, rates in self.rates.items() if rates[prompt] > 0]
        return sorted(found, key=lambda item: (-item[1], item[0]))


def find_records(model: str) -> str | None:
    """
    The file of selections of an adapter.

    Args:
        model (`str`): folder or Hub name of the adapter.

    Returns:
        `str`, *optional*: the file `selections.safetensors` in the folder, or beside a folder that `peft-listen train` has
        written; `None` if there is none.
    """
    run = find_run(model)
    candidates = [Path(model, SELECTIONS_NAME)]
    if run is not None:
        candidates.append(run / SELECTIONS_NAME)
    return next((os.fspath(path) for path in candidates if path.is_file()), None)


def load_task_shares(path: str, models: ServedModels, name: str) -> TaskShares:
    """
    Reads the selections of an adapter.

    Args:
        path (`str`): file that `SelectionRecords.save` or `peft-listen report --save-records` wrote.
        models ([`~peft_listen.serving.ServedModels`]): the models, which nothing else uses meanwhile.
        name (`str`): name of the model whose selections they are.

    Returns:
        [`TaskShares`]

    Raises:
        OSError: the file cannot be read.
        ValueError: it does not contain selections, or those of another adapter.
    """
    records = SelectionRecords.load(path)
    with active(models, Variant(name)) as layer:
        if layer is None:
            raise ValueError(
                f"{path} contains selections of prompts, but {name!r} has no LiSTEN adapter. Leave it out."
            )
        keys = layer.pool_of().keys.detach().float().cpu()
    if records.keys.shape != keys.shape or not torch.allclose(records.keys, keys, rtol=1e-3, atol=1e-5):
        raise ValueError(
            f"{path} contains the selections of another adapter than {name!r}: the keys differ. Record those of this adapter "
            f"by `peft-listen report ADAPTER DATA --save-records {path}`, or leave the file out."
        )
    return TaskShares.from_records(records)
