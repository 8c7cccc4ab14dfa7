"""What determines the result of a run, for the record that a resumed run is compared with."""

from __future__ import annotations

import dataclasses
import enum
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..data import Example
from ..settings_record import checkpoint_fingerprint, fingerprint
from .options import RunArguments


# Arguments of the trainer that change what is shown, kept or uploaded, or how fast it goes, but not the trained model.
_WITHOUT_EFFECT = frozenset(
    {
        "output_dir",
        "hub_always_push",
        "hub_include",
        "hub_model_id",
        "hub_private_repo",
        "hub_revision",
        "hub_strategy",
        "hub_token",
        "push_to_hub",
        "dataloader_num_workers",
        "dataloader_persistent_workers",
        "dataloader_pin_memory",
        "dataloader_prefetch_factor",
        "dataloader_multiprocessing_context",
        "ddp_backend",
        "ddp_timeout",
        "debug",
        "disable_tqdm",
        "do_eval",
        "do_predict",
        "do_train",
        "enable_jit_checkpoint",
        "local_rank",
        "log_level",
        "log_level_replica",
        "log_on_each_node",
        "logging_first_step",
        "logging_nan_inf_filter",
        "logging_steps",
        "logging_strategy",
        "project",
        "report_to",
        "resume_from_checkpoint",
        "run_name",
        "save_on_each_node",
        "save_total_limit",
        "skip_memory_metrics",
        "torch_empty_cache_steps",
        "trackio_bucket_id",
        "trackio_space_id",
        "trackio_static_space_id",
    }
)


def run_settings(
    options: Sequence[Any], arguments: RunArguments, rows: Mapping[str, Sequence[Example]]
) -> dict[str, Any]:
    """
    Collects the settings of a run.

    Args:
        options (`Sequence`): the dataclasses of options.
        arguments ([`RunArguments`]): the arguments of the trainer.
        rows (`Mapping[str, Sequence[Example]]`): the rows of each split.

    Returns:
        `dict[str, Any]`: values that JSON can represent.
    """
    settings: dict[str, Any] = {}
    for each in options:
        settings |= dataclasses.asdict(each)
    settings.pop("feature_cache", None)  # the same features as without it
    values = arguments.to_dict()
    # Those that were given; the trainer's arguments contain more, which follow from these.
    names = [each.name for each in dataclasses.fields(arguments) if each.init and each.name not in _WITHOUT_EFFECT]
    settings |= {name: plain(values[name]) for name in names if name in values}
    settings["num_processes"] = arguments.world_size
    settings["rows"] = {split: f"{len(each)} rows, {fingerprint(each)}" for split, each in rows.items()}
    for name in ("model", "speech", "sound", "llm"):
        place = settings.get(name)
        if place and os.path.isdir(place):
            settings[f"{name}_checkpoint"] = checkpoint_fingerprint(place)
    return settings


def without_effect(name: str) -> bool:
    """Whether an option changes what is shown, kept or uploaded, or the speed, but not the trained model."""
    return name in _WITHOUT_EFFECT or name == "feature_cache"


def plain(value: Any) -> Any:
    """A value that JSON can represent; of an enumeration, the value of the member."""
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(item) for item in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
