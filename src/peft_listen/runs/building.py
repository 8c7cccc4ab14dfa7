"""Builds what a run trains: the base model from its parts or its folder, and the adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, get_peft_model
from torch import nn
from tqdm.auto import tqdm
from transformers import AutoModelForCausalLM, AutoProcessor, PreTrainedModel, ProcessorMixin
from transformers.utils.peft_utils import find_adapter_config_file

from ..data import Example
from ..folder_saving import replaced_checkpoint
from ..models.audio_listen import AudioListenConfig, AudioListenForCausalLM, AudioListenProcessor
from ..models.audio_listen.parts import PARTS
from ..pipelines.loading import find_auto_class
from ..rows import clips_of
from ..training import AudioListenCollator, chat_template_token_ids
from ..tuners.listen import ListenConfig
from ..tuners.listen.backbone import find_backbone
from ..with_lora import add_lora
from .options import AdapterOptions, DataOptions, ListenOptions, ModelOptions
from .sharding import is_sharded_run


PROJECTOR = "multi_modal_projector"

# Rows whose clips a new projector is prepared with. Whisper's 384 channels need no more for two digits.
_PREPARING_ROWS = 256


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


def load_base(name: str, options: ModelOptions) -> tuple[PreTrainedModel, ProcessorMixin]:
    """
    Loads a base model and its processor.

    Args:
        name (`str`): folder or Hub name of a model of this package, or of another audio language model of transformers.
        options ([`ModelOptions`]): the data type.

    Returns:
        `tuple[PreTrainedModel, ProcessorMixin]`: an [`AudioListenForCausalLM`] and its processor, or another model with audio.

    Raises:
        OSError: if one of them cannot be loaded.
        ValueError: if the name is that of an adapter, or of a model without audio.
    """
    try:
        if (found := find_adapter_config_file(name)) is not None:
            raise ValueError(
                f"`model` is {name!r}, which is an adapter ({Path(found).name}). Name its base model; to continue a run, use "
                "its output folder with the same options."
            )
        dtype = _dtype(options)
        arguments = {} if dtype is None else {"dtype": dtype}
        try:
            AudioListenConfig.from_pretrained(name)
        except ValueError as error:  # explains what is wrong with a model of another kind
            return _load_other_base(name, arguments, error)
        processor = AudioListenProcessor.from_pretrained(name)
        base = AudioListenForCausalLM.from_pretrained(name, **arguments)
    except OSError as error:
        raise OSError(f"The base model {name!r} cannot be loaded. {error}") from error
    return base, processor


def _load_other_base(
    name: str, arguments: dict[str, Any], error: ValueError
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Loads another audio language model of transformers; raises the error for one without audio."""
    auto_class = find_auto_class(name)
    if auto_class is AutoModelForCausalLM:
        raise error
    base = auto_class.from_pretrained(name, **arguments)
    if "audio" not in base.input_modalities:
        raise error
    return base, AutoProcessor.from_pretrained(name)


def check_other_base(base: PreTrainedModel, adapter: AdapterOptions, data: DataOptions) -> None:
    """
    Checks that the options fit a base model of transformers, whose projector is trained already. Models of this package are not
    looked at.

    Args:
        base (`PreTrainedModel`): the base model.
        adapter ([`AdapterOptions`]): what is trained.
        data ([`DataOptions`]): the data.

    Raises:
        ValueError: if they do not; the message says what to change.
    """
    if isinstance(base, AudioListenForCausalLM):
        return
    name = type(base).__name__
    problems = []
    if adapter.adapter == "none":
        problems.append("set `adapter` to listen, lora or listen+lora: its projector is trained already")
    if data.feature_cache is not None:
        problems.append("leave out `feature_cache`, which is for the encoders of AudioListenForCausalLM")
    if is_sharded_run():
        problems.append("do not use FSDP, which was tried with AudioListenForCausalLM only")
    if problems:
        raise ValueError(f"The base model is a {name}. For such a model, {'; '.join(problems)}.")


def prepare_projector(
    base: PreTrainedModel, collator: AudioListenCollator, rows: Sequence[Example], device: torch.device
) -> None:
    """
    Prepares a new projector for the clips that it will be trained on. One that was trained is left as it is.

    Args:
        base (`PreTrainedModel`): the base model, without an adapter.
        collator ([`AudioListenCollator`]): makes the batches.
        rows (`Sequence[Example]`): the training rows; at most 256 of those with audio are used, evenly spaced.
        device (`torch.device`): where the encoders run.
    """
    if not isinstance(base, AudioListenForCausalLM) or not base.model.multi_modal_projector.is_new:
        return
    with_audio = [row for row in rows if clips_of([row])]
    if not with_audio:
        return
    used = with_audio[:: -(-len(with_audio) // _PREPARING_ROWS)]
    # The language model, which may be too large for one device, stays where it is.
    towers = [tower for tower in (base.model.speech_tower, base.model.sound_tower) if tower is not None]
    places = [next(tower.parameters()).device for tower in towers]
    if collator.feature_cache is None:
        _move(towers, [device] * len(towers))
    is_hidden = not PartialState().is_main_process
    with tqdm(used, desc="Preparing the projector", unit="row", delay=1, disable=is_hidden) as progress:
        base.init_projector_from(collator([row]) for row in progress)
    _move(towers, places)


def _move(modules: Sequence[nn.Module], devices: Sequence[torch.device]) -> None:
    for module, device in zip(modules, devices, strict=True):
        if next(module.parameters()).device != device:
            module.to(device)


def add_adapter(
    base: PreTrainedModel,
    processor: ProcessorMixin,
    adapter: AdapterOptions,
    listen: ListenOptions,
    seed: int,
    template_variables: Mapping[str, Any] | None = None,
) -> nn.Module:
    """
    Adds the adapter to a base model. The projector of a model of this package is trained with it.

    Args:
        base (`PreTrainedModel`): the base model.
        processor (`ProcessorMixin`): its processor.
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
    common: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    if isinstance(base, AudioListenForCausalLM):
        common["modules_to_save"] = [PROJECTOR]
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
    processor: ProcessorMixin,
    options: ListenOptions,
    template_variables: Mapping[str, Any] | None = None,
    **fixed: Any,
) -> ListenConfig:
    """
    The configuration of the pool of prompts.

    Args:
        processor (`ProcessorMixin`): the processor, for the tokens of the chat template.
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


def lora_targets(base: PreTrainedModel, names: Sequence[str]) -> list[str]:
    """
    Full names of the modules of the language model that LoRA adapts. Encoders have modules of the same names.

    Args:
        base (`PreTrainedModel`): the model.
        names (`Sequence[str]`): last parts of the names, or `"all-linear"`.

    Raises:
        ValueError: if there is no module of a name.
    """
    path, language_model = find_backbone(base)
    modules = {f"{path}.{name}": module for name, module in language_model.named_modules()}
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
