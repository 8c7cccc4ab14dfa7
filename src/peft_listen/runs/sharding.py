"""Runs whose model is sharded by FSDP2: what is supported, and how such a model is saved."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from accelerate.utils.constants import FSDP_MODEL_NAME
from transformers.integrations import is_deepspeed_zero3_enabled

from .options import AdapterOptions, DataOptions, RunArguments


def is_sharded_run() -> bool:
    """Whether `accelerate launch` has started this process with FSDP."""
    return bool(parse_flag_from_env("ACCELERATE_USE_FSDP"))


def check_sharding(adapter: AdapterOptions, data: DataOptions, arguments: RunArguments) -> None:
    """
    Checks that a run with FSDP or DeepSpeed has a supported form.

    Args:
        adapter ([`AdapterOptions`]): what is trained.
        data ([`DataOptions`]): data and scores.
        arguments ([`RunArguments`]): arguments of the trainer.

    Raises:
        ValueError: if it has not; the message says what to change.
    """
    if is_deepspeed_zero3_enabled():
        raise ValueError("DeepSpeed ZeRO-3 is not supported. Use FSDP2: docs/scaling.md has a configuration file.")
    if arguments.fsdp:
        raise ValueError(
            "`fsdp` is not used. Leave it out, and pass a configuration file to `accelerate launch`: docs/scaling.md has one."
        )
    if not is_sharded_run():
        return
    environment = os.environ
    problems = []
    if environment.get("FSDP_VERSION", "1") != "2":
        problems.append("set `fsdp_version: 2`; FSDP1 is not supported")
    if parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        problems.append(
            "set `fsdp_cpu_ram_efficient_loading: false`; accelerate cannot load the adapter's buffers with it"
        )
    if environment.get("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT") != "FULL_STATE_DICT":
        problems.append("set `fsdp_state_dict_type: FULL_STATE_DICT`, so that checkpoints contain the adapter")
    if environment.get("ACCELERATE_MIXED_PRECISION", "no") != "no" or arguments.bf16 or arguments.fp16:
        problems.append(
            "set `mixed_precision: 'no'`, and no `bf16` or `fp16`; `dtype: bfloat16` is for the frozen weights, and the trained "
            "ones, among them the keys, stay in float32"
        )
    if adapter.adapter == "none":
        problems.append("set `adapter` to listen, lora or listen+lora, not none")
    if arguments.load_best_model_at_end:
        problems.append("leave out `load_best_model_at_end` and `early_stopping_patience`")
    if data.eval_data and data.eval_rows_per_task != 0 and str(getattr(arguments.eval_strategy, "value", "")) != "no":
        problems.append("set `eval_rows_per_task: 0`; evaluations during the training compute the loss alone")
    if problems:
        raise ValueError("With FSDP, " + "; ".join(problems) + ".")


def shard_decoder_layers(accelerator: Accelerator, base: Any) -> None:
    """
    Makes the layers of the language model the units of FSDP, unless the configuration names others. The encoders and the
    projector are not units: a process whose batch has no clip does not run them, and would keep the others waiting.

    Args:
        accelerator ([`~accelerate.Accelerator`]): that of the trainer.
        base ([`AudioListenForCausalLM`]): the base model.
    """
    plugin: Any = getattr(accelerator.state, "fsdp_plugin", None)
    if plugin is not None and plugin.transformer_cls_names_to_wrap is None:
        plugin.transformer_cls_names_to_wrap = sorted(base.model.language_model._no_split_modules or [])


def trained_state_dict(model: Any) -> dict[str, Any]:
    """
    The trained tensors and the buffers of a sharded model, whole and on the CPU, in the main process; empty in the others. All
    processes have to call this function.

    Args:
        model (`nn.Module`): with parameters that FSDP2 has sharded.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
    state_dict: dict[str, Any] = get_model_state_dict(model, options=options)
    return state_dict


def load_trained_state(model: Any, checkpoint: Path) -> None:
    """
    Loads the trained tensors and the buffers from a checkpoint of a sharded training into a model that is not sharded. Each
    process reads the file.

    Args:
        model (`nn.Module`): the model. Changed in place.
        checkpoint (`pathlib.Path`): the checkpoint.

    Raises:
        OSError: if the checkpoint lacks what was trained; the message says what to do.
    """
    path = checkpoint / f"{FSDP_MODEL_NAME}.bin"
    advice = f"Delete {checkpoint}, and run the command again: it continues from the checkpoint before it."
    if not path.is_file():
        raise OSError(f"{path} is missing. {advice}")
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    result = model.load_state_dict(state_dict, strict=False)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if missing := sorted(trained.intersection(result.missing_keys)):
        raise OSError(f"{path} lacks {', '.join(missing[:3])}. {advice}")
    if result.unexpected_keys:
        raise OSError(f"{path} is from another model: it has {', '.join(result.unexpected_keys[:3])}. {advice}")
