"""What differs between two adapters of one base model: their prompts, and the prompts that inputs select."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from peft import PeftConfig
from peft.utils.save_and_load import load_peft_weights
from safetensors import SafetensorError
from torch import nn

from ..tuners.listen import find_listen_layer
from ..tuners.listen.checkpoints import rename_former_keys
from .records import SelectionRecords


_TENSORS = ("keys", "values", "shared_values")

# Configuration fields that do not change what an adapter does.
_NOT_COMPARED = {
    "inference_mode",
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "runtime_config",
}


@dataclass(frozen=True)
class TaskChange:
    """
    How the selections of a task's inputs differ.

    Attributes:
        num_rows (`int`): number of inputs.
        changed (`float`): fraction of the inputs whose set of selected prompts differs.
        kept (`float`): mean fraction of an input's prompts of the first adapter that the second one selects too.
    """

    num_rows: int
    changed: float
    kept: float


@dataclass(frozen=True, eq=False)
class AdapterComparison:
    """
    Differences between two adapters.

    Attributes:
        key_cosine (`torch.FloatTensor` of shape `(pool_size,)`): cosine of the two keys of each prompt; 1 for equal vectors,
            and 0 if one of them is zero.
        value_cosine (`torch.FloatTensor` of shape `(pool_size,)`): the same for the values.
        shared_value_cosine (`torch.FloatTensor` of shape `(num_shared_prompts,)`, *optional*): the same for the shared
            prompts, if both adapters have equally many.
        num_equal (`int`): number of prompts with equal keys and values.
        settings (`dict[str, tuple]`): configuration fields that differ, with both values.
        tasks (`dict[str, TaskChange]`): differences of the selections of each task, sorted by name; empty without records.
        all_tasks ([`TaskChange`], *optional*): those of all inputs.
    """

    key_cosine: torch.Tensor
    value_cosine: torch.Tensor
    shared_value_cosine: torch.Tensor | None
    num_equal: int
    settings: dict[str, tuple[Any, Any]]
    tasks: dict[str, TaskChange] = field(default_factory=dict)
    all_tasks: TaskChange | None = None

    def most_changed(self, top: int = 10) -> list[int]:
        """Returns the `top` prompts whose values have the lowest cosine, lowest first; ties go to the lower number."""
        order: list[int] = self.value_cosine.argsort(stable=True)[:top].tolist()
        return order

    def to_dict(self) -> dict[str, Any]:
        """Converts the comparison to JSON-serializable values."""
        shared = self.shared_value_cosine
        return {
            "key_cosine": self.key_cosine.tolist(),
            "value_cosine": self.value_cosine.tolist(),
            "shared_value_cosine": None if shared is None else shared.tolist(),
            "num_equal": self.num_equal,
            "settings": {name: list(values) for name, values in self.settings.items()},
            "tasks": {name: dict(vars(task)) for name, task in self.tasks.items()},
            "all_tasks": None if self.all_tasks is None else dict(vars(self.all_tasks)),
        }


def compare_adapters(
    first: str | os.PathLike[str] | nn.Module,
    second: str | os.PathLike[str] | nn.Module,
    *,
    first_records: SelectionRecords | None = None,
    second_records: SelectionRecords | None = None,
) -> AdapterComparison:
    """
    Compares two adapters of the same base model prompt by prompt: prompt i of one with prompt i of the other. This is
    meaningful if they have a common origin, such as the same seed or two stages of one training.

    Args:
        first, second (`str`, `os.PathLike` or `nn.Module`): folder or Hub name of an adapter, of which only the adapter's own
            files are read; or a model with an active LiSTEN adapter.
        first_records, second_records ([`SelectionRecords`], *optional*): selections of the two adapters for the same rows in
            the same order, from [`record_dataset`].

    Returns:
        [`AdapterComparison`]

    Raises:
        ValueError: if a folder has no LiSTEN adapter; the adapters differ in their base model (by the last part of its name),
            pool size or embedding size; only one of the records is given; or the records are for other rows or another pool.
        OSError: if the adapter's files cannot be read.
    """
    if (first_records is None) != (second_records is None):
        raise ValueError("Pass the records of both adapters, or of none.")
    (first_tensors, first_config), (second_tensors, second_config) = map(_read_adapter, (first, second))
    _check_comparable(first_tensors, second_tensors, first_config, second_config)
    is_equal = (first_tensors["keys"] == second_tensors["keys"]).all(dim=1)
    is_equal &= (first_tensors["values"] == second_tensors["values"]).all(dim=1)
    names = sorted((first_config.keys() | second_config.keys()) - _NOT_COMPARED)
    settings = {name: (first_config.get(name), second_config.get(name)) for name in names}
    tasks: dict[str, TaskChange] = {}
    all_tasks: TaskChange | None = None
    if first_records is not None and second_records is not None:
        _check_records(first_records, second_records, len(first_tensors["keys"]))
        tasks, all_tasks = _changes(first_records, second_records)
    return AdapterComparison(
        key_cosine=_cosine(first_tensors["keys"], second_tensors["keys"]),
        value_cosine=_cosine(first_tensors["values"], second_tensors["values"]),
        shared_value_cosine=_shared_cosine(first_tensors.get("shared_values"), second_tensors.get("shared_values")),
        num_equal=int(is_equal.sum()),
        settings={name: values for name, values in settings.items() if values[0] != values[1]},
        tasks=tasks,
        all_tasks=all_tasks,
    )


def _read_adapter(source: str | os.PathLike[str] | nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a pool in float32 on the CPU, by their names in [`PromptPool`], and the configuration."""
    if isinstance(source, nn.Module):
        pool = find_listen_layer(source).pool_of()
        tensors = {name: getattr(pool, name) for name in _TENSORS if getattr(pool, name) is not None}
        config = pool.config.to_dict()
    else:
        name = os.fspath(source)
        try:
            config = PeftConfig.from_pretrained(name).to_dict()
            saved = rename_former_keys(load_peft_weights(name, device="cpu"))
        except SafetensorError as error:
            raise ValueError(f"The weights of {name} are damaged ({error}). Save the adapter again.") from error
        found = {
            key.rpartition(".listen_pools.")[2]: tensor for key, tensor in saved.items() if ".listen_pools." in key
        }
        tensors = {name: found[name] for name in _TENSORS if name in found}
        for required in ("keys", "values"):
            if required not in tensors or tensors[required].ndim != 2:
                raise ValueError(
                    f"{name} has no LiSTEN prompts (its `peft_type` is {config.get('peft_type')}); expected the folder or Hub "
                    "name of a LiSTEN adapter."
                )
    tensors = {name: _whole(tensor) for name, tensor in tensors.items()}
    for name, tensor in tensors.items():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"`{name}` of {source!r:.200} contains NaN or infinite values; the training has diverged."
            )
    return tensors, {name: _plain(value) for name, value in config.items()}


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    whole: torch.Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor  # of a DTensor
    return whole.detach().float().cpu()


def _plain(value: Any) -> Any:
    """A configuration value as JSON has it."""
    if isinstance(value, (list, tuple, set)):
        return [_plain(item) for item in (sorted(value, key=str) if isinstance(value, set) else value)]
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _check_comparable(
    first: dict[str, torch.Tensor],
    second: dict[str, torch.Tensor],
    first_config: dict[str, Any],
    second_config: dict[str, Any],
) -> None:
    bases = [str(config.get("base_model_name_or_path") or "") for config in (first_config, second_config)]
    # A base model may have been moved or downloaded, so only the last part of its name is compared.
    if all(bases) and len({os.path.basename(os.path.normpath(base)) for base in bases}) > 1:
        raise ValueError(
            f"The adapters are for different base models, {bases[0]!r} and {bases[1]!r}, so their prompts are vectors of "
            "different spaces. Compare adapters of one base model."
        )
    shapes = [tuple(tensors[name].shape) for tensors in (first, second) for name in ("keys", "values")]
    if len(set(shapes)) > 1:
        raise ValueError(
            f"The keys of the adapters have the shapes {shapes[0]} and {shapes[2]}, their values {shapes[1]} and {shapes[3]}. "
            "Compare adapters with the same number of prompts of the same size."
        )


def _check_records(first: SelectionRecords, second: SelectionRecords, pool_size: int) -> None:
    if list(first.tasks) != list(second.tasks) or (first.inputs and second.inputs and first.inputs != second.inputs):
        raise ValueError(
            f"The records are for different rows ({len(first.tasks)} and {len(second.tasks)}). Record both adapters for the "
            "same rows in the same order."
        )
    for records in (first, second):
        if records.pool_size != pool_size:
            raise ValueError(
                f"The records are for a pool of {records.pool_size} prompts, but the adapters have {pool_size}. Pass the "
                "records of these adapters."
            )


def _cosine(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Cosine of each row; 1 for equal rows, also if they are zero."""
    cosine = F.cosine_similarity(first.double(), second.double(), dim=-1).float()
    return torch.where((first == second).all(dim=-1), 1.0, cosine.clamp(-1.0, 1.0))


def _shared_cosine(first: torch.Tensor | None, second: torch.Tensor | None) -> torch.Tensor | None:
    if first is None or second is None or first.shape != second.shape:
        return None
    return _cosine(first, second)


def _changes(first: SelectionRecords, second: SelectionRecords) -> tuple[dict[str, TaskChange], TaskChange]:
    pairs = [
        (set(before), set(after))
        for before, after in zip(first.indices.tolist(), second.indices.tolist(), strict=True)
    ]

    def change(rows: list[int]) -> TaskChange:
        chosen = [pairs[row] for row in rows]
        return TaskChange(
            num_rows=len(chosen),
            changed=sum(before != after for before, after in chosen) / len(chosen),
            kept=sum(len(before & after) / len(before) for before, after in chosen) / len(chosen),
        )

    tasks = {task: change([row for row, name in enumerate(first.tasks) if name == task]) for task in first.task_names}
    return tasks, change(list(range(len(pairs))))


def format_comparison(comparison: AdapterComparison, top: int = 10) -> str:
    """
    Formats a comparison as lines of text.

    Args:
        comparison ([`AdapterComparison`]): what to format.
        top (`int`, defaults to 10): number of most changed prompts to list.
    """
    keys, values, shared = comparison.key_cosine, comparison.value_cosine, comparison.shared_value_cosine
    lines = [f"{comparison.num_equal} of {len(keys)} prompts are equal.", f"{'cosine':<22}{'mean':>8}{'lowest':>8}"]
    for name, cosine in (("keys", keys), ("values", values), ("shared prompts", shared)):
        if cosine is not None and len(cosine):
            lines.append(f"  {name:<20}{float(cosine.mean()):>8.3f}{float(cosine.min()):>8.3f}")
    changed = [index for index in comparison.most_changed(top) if float(values[index]) < 1.0]
    if changed:
        lines.append(f"{'most changed values':<22}{'value':>8}{'key':>8}")
        lines += [f"  {f'#{index}':<20}{float(values[index]):>8.3f}{float(keys[index]):>8.3f}" for index in changed]
    if comparison.all_tasks is not None:
        width = max(20, *map(len, comparison.tasks))
        lines.append(f"{'inputs':<{width + 2}}{'number':>8}{'changed':>9}{'kept':>7}")
        for task, change in (*comparison.tasks.items(), ("all", comparison.all_tasks)):
            lines.append(f"  {task:<{width}}{change.num_rows:>8}{change.changed:>9.0%}{change.kept:>7.0%}")
    if comparison.settings:
        lines.append("different settings")
        lines += [f"  {name}: {before!r} and {after!r}" for name, (before, after) in comparison.settings.items()]
    return "\n".join(lines)
