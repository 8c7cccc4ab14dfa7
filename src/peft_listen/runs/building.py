"""Builds what a run trains: the base model from its parts or its folder, and the adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers.utils.peft_utils import find_adapter_config_file

from ..folder_saving import replaced_checkpoint
from ..models.audio_listen import AudioListenConfig, AudioListenForCausalLM, AudioListenProcessor
from ..models.audio_listen.parts import PARTS
from ..training import chat_template_token_ids
from ..tuners.listen import ListenConfig
from ..with_lora import add_lora
from .options import AdapterOptions, ListenOptions, ModelOptions


PROJECTOR = "multi_modal_projector"


def save_base(options: ModelOptions, folder: Path, seed: int) -> None:
    """
    Builds a base model from its parts and saves it, unless it is there already. One process calls this.

    Args:
        options ([`ModelOptions`]): the parts.
        folder (`pathlib.Path`): receives the projector, references to the frozen parts, and the processor.
        seed (`int`): seed of the projector.

    Raises:
        OSError, ValueError: if a part cannot be loaded, or the model cannot be saved.
    """
    is_there = all((folder / name).is_file() for name in ("config.json", "processor_config.json"))
    if options.model is None and not is_there:
        parts: dict[str, Any] = {"speech": options.speech, "sound": options.sound, "llm": options.llm}
        processor = AudioListenProcessor.from_sub_models_pretrained(**parts, **_chunks(options))
        torch.manual_seed(seed)
        base = AudioListenForCausalLM.from_sub_models_pretrained(
            **parts, tokenizer=processor.tokenizer, dtype=_dtype(options), **_chunks(options)
        )
        with replaced_checkpoint(folder) as temporary:
            base.save_pretrained(temporary, save_frozen=False)
            processor.save_pretrained(temporary)


def save_trained_base(model: AudioListenForCausalLM, folder: str | os.PathLike[str]) -> None:
    """
    Saves a base model whose projector was trained: with references to the frozen parts where it was loaded from such, as a
    whole otherwise.

    Args:
        model ([`AudioListenForCausalLM`]): the model.
        folder (`str` or `os.PathLike`): folder to write.
    """
    frozen = [part.name for part in PARTS if part.is_frozen(model)]
    has_references = all(model.frozen_references.get(name, {}).get("name_or_path") for name in frozen)
    model.save_pretrained(folder, save_frozen=not has_references)


def load_base(name: str, options: ModelOptions) -> tuple[AudioListenForCausalLM, AudioListenProcessor]:
    """
    Loads a base model and its processor.

    Args:
        name (`str`): folder or Hub name.
        options ([`ModelOptions`]): the data type.

    Raises:
        OSError: if one of them cannot be loaded.
        ValueError: if the name is that of an adapter, or of a model of another kind.
    """
    try:
        if (found := find_adapter_config_file(name)) is not None:
            raise ValueError(
                f"`model` is {name!r}, which is an adapter ({Path(found).name}). Name its base model; to continue a run, use "
                "its output folder with the same options."
            )
        AudioListenConfig.from_pretrained(name)  # explains what is wrong with a model of another kind
        processor = AudioListenProcessor.from_pretrained(name)
        dtype = _dtype(options)
        base = AudioListenForCausalLM.from_pretrained(name, **({} if dtype is None else {"dtype": dtype}))
    except OSError as error:
        raise OSError(f"The base model {name!r} cannot be loaded. {error}") from error
    return base, processor


def add_adapter(
    base: AudioListenForCausalLM,
    processor: AudioListenProcessor,
    adapter: AdapterOptions,
    listen: ListenOptions,
    seed: int,
    template_variables: Mapping[str, Any] | None = None,
) -> nn.Module:
    """
    Adds the adapter to a base model. The projector is trained with it.

    Args:
        base ([`AudioListenForCausalLM`]): the base model.
        processor ([`AudioListenProcessor`]): its processor.
        adapter ([`AdapterOptions`]): which adapter.
        listen ([`ListenOptions`]): options of the pool of prompts.
        seed (`int`): seed of the initialization.
        template_variables (`Mapping`, *optional*): variables for the chat template.

    Returns:
        `nn.Module`: a `PeftModel`, or the base model if the projector alone is trained.

    Raises:
        ValueError: for options that do not fit the model or each other.
    """
    torch.manual_seed(seed)
    if adapter.adapter == "none":
        return base
    common: dict[str, Any] = {"modules_to_save": [PROJECTOR], "task_type": "CAUSAL_LM"}
    lora = LoraConfig(
        r=adapter.lora_r,
        lora_alpha=adapter.lora_alpha,
        lora_dropout=adapter.lora_dropout,
        target_modules=lora_targets(base, adapter.lora_target_modules),
        **(common if not adapter.has_listen else {}),
    )
    if not adapter.has_listen:
        return get_peft_model(base, lora)
    config = listen_config(processor, listen, template_variables, **common, seed=seed)
    model: Any = get_peft_model(base, config)
    return add_lora(model, lora) if adapter.has_lora else model


def listen_config(
    processor: AudioListenProcessor,
    options: ListenOptions,
    template_variables: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> ListenConfig:
    """
    The configuration of the pool of prompts.

    Args:
        processor ([`AudioListenProcessor`]): the processor, for the tokens of the chat template.
        options ([`ListenOptions`]): the options.
        template_variables (`Mapping`, *optional*): variables for the chat template.
        fixed (`Any`): further fields of [`ListenConfig`].

    Raises:
        ValueError: for a value outside its range.
    """
    is_paper = options.listen_form == "paper"
    ignores_template = not is_paper if options.listen_ignore_template is None else options.listen_ignore_template
    values = {**options.config_values(), **fixed}
    if ignores_template:
        values["query_ignored_token_ids"] = chat_template_token_ids(processor, template_variables)
    return ListenConfig.paper(**values) if is_paper else ListenConfig(**values)


def lora_targets(base: AudioListenForCausalLM, names: Sequence[str]) -> list[str]:
    """
    Full names of the modules of the language model that LoRA adapts. Encoders have modules of the same names.

    Args:
        base ([`AudioListenForCausalLM`]): the model.
        names (`Sequence[str]`): last parts of the names, or `"all-linear"`.

    Raises:
        ValueError: if there is no module of a name.
    """
    modules = {f"model.language_model.{name}": module for name, module in base.model.language_model.named_modules()}
    if list(names) == ["all-linear"]:
        return [name for name, module in modules.items() if isinstance(module, nn.Linear)]
    last_parts = {name.rpartition(".")[2] for name in modules}
    if missing := [name for name in names if name not in last_parts]:
        linear = sorted({name.rpartition(".")[2] for name, module in modules.items() if isinstance(module, nn.Linear)})
        raise ValueError(
            f"`lora_target_modules` names {missing}, which the language model does not have; its linear layers are "
            f"{', '.join(linear)}."
        )
    return [name for name in modules if name.rpartition(".")[2] in names]


def _dtype(options: ModelOptions) -> Any:
    return getattr(torch, options.dtype) if options.dtype not in (None, "auto") else options.dtype


def _chunks(options: ModelOptions) -> dict[str, Any]:
    return {} if options.speech_chunk_multiple is None else {"speech_chunk_multiple": options.speech_chunk_multiple}
