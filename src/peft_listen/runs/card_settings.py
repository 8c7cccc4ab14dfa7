"""What the model card says about the training of a run: its settings, and the command that repeats it."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

from .. import __version__
from ..card_sections import PLACE
from ..data import Example
from ..tuners.listen import ListenConfig
from .options import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments
from .settings import plain, without_effect


# Arguments of the trainer that say where it computes, not what.
_OF_THE_MACHINE = frozenset({"use_cpu", "device", "bf16_full_eval", "fp16_full_eval"})
# Options without an effect on the model without which the command would write to other folders.
_FOLDERS = frozenset({"output_dir", "feature_cache"})
# Options that may be a folder or the name of a repository.
_MODELS = frozenset({"model", "speech", "sound", "llm"})
# Options that other lines of the table, or the command below it, show.
_SHOWN = (
    _MODELS
    | _FOLDERS
    | {"train_data", "eval_data", "test_data", "learning_rate", "lr_scheduler_type", "warmup_steps", "max_steps"}
    | {"value_learning_rate", "shared_value_learning_rate", "key_learning_rate", "seed", "data_seed"}
    | {"per_device_train_batch_size", "gradient_accumulation_steps", "adapter"}
)


def card_settings(
    options: tuple[ModelOptions, AdapterOptions, ListenOptions, DataOptions],
    arguments: RunArguments,
    rows: Mapping[str, Sequence[Example]],
    log_history: Sequence[Mapping[str, Any]],
    num_skipped: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """
    The settings of a finished training, for [`~peft_listen.model_card.add_training`].

    Args:
        options (`tuple`): the dataclasses of options.
        arguments ([`RunArguments`]): the arguments of the trainer.
        rows (`Mapping[str, Sequence[Example]]`): the rows of each split.
        log_history (`Sequence[Mapping]`): the trainer's log.
        num_skipped (`Mapping[str, int]`, *optional*): number of rows of each split that were left out because of their clips.

    Returns:
        `dict[str, Any]`: values by the names of the settings.
    """
    _, adapter, listen, data = options
    settings: dict[str, Any] = {"adapter": adapter.adapter}
    prompts = {"form", *listen.config_values()}
    if adapter.has_listen:
        given = listen.config_values()
        config: Any = ListenConfig.paper(**given) if listen.listen_form == "paper" else ListenConfig(**given)
        names = dict.fromkeys(["pool_size", "prompt_length", "selector", *given])
        settings["prompts"] = ", ".join(f"{name}={getattr(config, name)!r}" for name in names)
        form = "`ListenConfig`" if listen.listen_form == "default" else "`ListenConfig.paper()`"
        settings["prompts"] += f"; its other options have the defaults of {form}"
    if adapter.has_lora:
        settings["LoRA"] = (
            f"r={adapter.lora_r}, lora_alpha={adapter.lora_alpha}, lora_dropout={adapter.lora_dropout}, "
            f"target_modules={', '.join(adapter.lora_target_modules)}"
        )
    settings["learning rate"] = f"{arguments.learning_rate:g}, {plain(arguments.lr_scheduler_type)}"
    for name in ("value_learning_rate", "shared_value_learning_rate", "key_learning_rate"):
        if (rate := getattr(arguments, name)) is not None:
            settings[name.replace("_", " ")] = f"{rate:g}"
    warm_up = arguments.warmup_steps
    settings["warm-up"] = f"{100 * warm_up:g} % of the steps" if 0 < warm_up < 1 else f"{warm_up:g} steps"
    settings["steps"] = max((entry["step"] for entry in log_history if "step" in entry), default=0)
    per_device, accumulated = arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps
    settings["batch size"] = (
        f"{arguments.train_batch_size * accumulated * arguments.world_size} ({per_device} per device, {accumulated} "
        f"accumulated, {arguments.world_size} processes)"
    )
    settings["seed"] = (
        arguments.seed if arguments.data_seed is None else f"{arguments.seed}, data {arguments.data_seed}"
    )
    for split, each in rows.items():
        if each:
            files = ", ".join(Path(path).name for path in getattr(data, f"{split}_data"))
            left_out = f" ({count} skipped)" if (count := (num_skipped or {}).get(split)) else ""
            settings[f"{split} data"] = (
                f"{len(each)} rows{left_out} of {files}; tasks {', '.join(sorted(_tasks(each)))}"
            )
    others = [
        f"{name}={' '.join(_words(value))}"
        for name, value in _set_options((*options, arguments))
        if name not in _SHOWN and not name.startswith("lora_") and name.removeprefix("listen_") not in prompts
    ]
    if others:
        settings["other options"] = ", ".join(others)
    settings["versions"] = (
        f"peft-listen {__version__}, peft {peft.__version__}, transformers {transformers.__version__}, "
        f"torch {torch.__version__}"
    )
    return settings


def hub_datasets(rows: Sequence[Example]) -> list[str]:
    """
    Names on the Hub of the data sets that rows name.

    Args:
        rows (`Sequence[Example]`): the rows.

    Returns:
        `list[str]`: each name once, in alphabetical order.
    """
    return sorted({row["hub_dataset"] for row in rows if "hub_dataset" in row})


def run_command(options: Sequence[Any], arguments: RunArguments) -> str:
    """
    The command that repeats a run: all options with other values than the default. Options that do not change the trained
    model are left out, tokens among them, except for the folders that the run writes to. A card is for other people too, so
    absolute paths, and the folders of models, have "path/to/" in place of the folders that contain them.

    Args:
        options (`Sequence`): the dataclasses of options.
        arguments ([`RunArguments`]): the arguments of the trainer.

    Returns:
        `str`: a line for a shell.
    """
    words = ["peft-listen", "train"]
    if arguments.world_size > 1:
        words = [
            "accelerate",
            "launch",
            "--num_processes",
            str(arguments.world_size),
            "-m",
            "peft_listen_cli",
            "train",
        ]
    for name, value in _set_options((*options, arguments)):
        words += [f"--{name.replace('_', '-')}", *_words(value, is_model=name in _MODELS)]
    words += ["--output-dir", Path(arguments.output_dir or "output").resolve().name]
    return shlex.join(words)


def _set_options(options: Sequence[Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of the options that have another value than the default and matter to whoever repeats the run."""
    for each in options:
        values, defaults = _values_and_defaults(each)
        for name, default in defaults.items():
            value = values[name]
            matters = name == "feature_cache" or not (name in _OF_THE_MACHINE or without_effect(name))
            if matters and value is not None and plain(value) != plain(default):
                yield name, value


def _values_and_defaults(options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    fields = [field for field in dataclasses.fields(options) if field.init]
    if isinstance(options, RunArguments):
        # Some values are replaced when the arguments are created, those of defaults too.
        defaults = RunArguments(use_cpu=options.use_cpu, output_dir=options.output_dir).to_dict()
        return options.to_dict(), {field.name: defaults[field.name] for field in fields if field.name in defaults}
    return vars(options), {
        field.name: field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        for field in fields
    }


def _words(value: Any, is_model: bool = False) -> list[str]:
    """The words of a value on the command line, without the folders of this machine."""
    if isinstance(value, (list, tuple)):
        return [word for item in value for word in _words(item)]
    if isinstance(value, Mapping):
        return [json.dumps(plain(value))]
    text = str(value).lower() if isinstance(value, bool) else str(plain(value))
    is_local = os.path.isabs(text) or (is_model and os.path.exists(text))
    return [PLACE + os.path.basename(os.path.abspath(text)) if is_local else text]


def _tasks(rows: Sequence[Example]) -> set[str]:
    return {row["task"] for row in rows}
