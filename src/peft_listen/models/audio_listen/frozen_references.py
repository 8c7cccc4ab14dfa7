"""Checkpoints without the frozen parts: references to them are saved, and followed when the checkpoint is loaded."""

import copy
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from transformers import GenerationConfig
from transformers.integrations.peft import maybe_load_adapters
from transformers.modeling_utils import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file
from transformers.utils.hub import resolve_revision

from .composition import (
    FILE_ARGUMENTS,
    HUB_ARGUMENTS,
    PART_ARGUMENTS,
    Source,
    assemble,
    fit_vocabulary,
    load_part,
    select,
)
from .configuration_audio_listen import AudioListenConfig


if TYPE_CHECKING:
    from .modeling_composed import ComposedModel

# What a part's `from_pretrained` is given again: `name_or_path`, and the arguments that chose its files.
Reference = dict[str, str | None]

_CONFIG_NAMES = {"speech_tower": "speech_config", "sound_tower": "sound_config", "language_model": "text_config"}


def make_reference(source: Source | PreTrainedModel, kwargs: dict[str, Any]) -> Reference:
    """
    Where a part can be loaded from again. `name_or_path` is empty for a model that was never loaded.

    Args:
        source (`str`, `os.PathLike` or `PreTrainedModel`): What the part was made from.
        kwargs (`dict`): Arguments of its `from_pretrained`.
    """
    name = (source.config.name_or_path or "") if isinstance(source, PreTrainedModel) else os.fspath(source)
    reference = {"name_or_path": name, **select(kwargs, FILE_ARGUMENTS)}
    if os.path.exists(name):
        reference["name_or_path"] = os.path.abspath(name)
    elif name:
        # A branch moves on; the commit it points to now does not.
        revision = resolve_revision(name, kwargs.get("revision"), **select(kwargs, ("cache_dir", "token")))
        reference["revision"] = getattr(revision, "resolved", revision)
    return reference


def reference_frozen_parts(model: "ComposedModel") -> dict[str, Reference]:
    """
    The references to save in place of the frozen parts.

    Raises:
        `ValueError`: if a frozen part was not loaded from anywhere.
    """
    references = {name: model.frozen_references.get(name, {}) for name in _frozen_parts(model)}
    for name, reference in references.items():
        if not reference.get("name_or_path"):
            raise ValueError(
                f"`save_frozen=False` leaves out `{name}`, but it was not loaded from a checkpoint, so it could not be "
                "found again. Save the whole model, or build it with `from_sub_models_pretrained` from saved parts."
            )
    return references


def _frozen_parts(model: "ComposedModel") -> list[str]:
    """Names of the parts none of whose parameters requires gradients."""
    parts: dict[str, list[Any]] = {
        "speech_tower": [model.model.speech_tower],
        "sound_tower": [model.model.sound_tower],
        "language_model": [model.model.language_model, model.lm_head],
    }
    return [
        part
        for part, modules in parts.items()
        if None not in modules
        and not any(weight.requires_grad for module in modules for weight in module.parameters())
    ]


def is_within(name: str, parts: Iterable[str]) -> bool:
    """Whether the weight `name` belongs to one of `parts`. The head belongs to the language model."""
    prefixes = tuple(f"model.{part}." for part in parts)
    return name.startswith(prefixes + (("lm_head.",) if "language_model" in parts else ()))


def load_config(path: Source, kwargs: dict[str, Any]) -> AudioListenConfig:
    """The configuration that `from_pretrained(path, **kwargs)` would use."""
    config = kwargs.get("config")
    if isinstance(config, AudioListenConfig):
        return copy.deepcopy(config)
    return AudioListenConfig.from_pretrained(config or path, **select(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS))


def resolve_adapter(path: Source, kwargs: dict[str, Any]) -> tuple[Source, dict[str, Any] | None]:
    """
    The base model that `from_pretrained(path, **kwargs)` would load, and the arguments of `load_adapter` for the adapter
    on it: `path` may be an adapter's folder, and the Auto classes pass one beside its base model. `None` if there is none.
    """
    download_kwargs: Any = select(kwargs, (*HUB_ARGUMENTS, "revision", "subfolder"))
    adapter_kwargs = dict(kwargs.get("adapter_kwargs") or {})
    adapter_path, base, adapter_kwargs = maybe_load_adapters(os.fspath(path), download_kwargs, **adapter_kwargs)
    if adapter_path is None:
        return path, None
    name = kwargs.get("adapter_name", "default")
    return base, {"peft_model_id": adapter_path, "adapter_name": name, "adapter_kwargs": adapter_kwargs}


def load_with_references(
    model_class: "type[ComposedModel]",
    path: Source,
    config: AudioListenConfig,
    sources: dict[str, Any],
    kwargs: dict[str, Any],
    adapter: dict[str, Any] | None = None,
) -> Any:
    """
    Loads a checkpoint that was saved with `save_frozen=False`: the referenced parts from where they were, or from
    `sources`, the rest from `path`, and then `adapter`, the arguments of `load_adapter`. Returns what `from_pretrained(path, **kwargs)` does.

    Raises:
        `OSError`: if a part is not found; the message names it and says how to point to it.
        `ValueError`: if a part is not the one that the checkpoint was saved with, or weights are missing.
    """
    common = select(kwargs, (*HUB_ARGUMENTS, "attn_implementation"))
    common["dtype"] = kwargs.get("dtype") or kwargs.get("torch_dtype") or config.dtype
    placement = select(kwargs, ("device_map", "max_memory", "offload_folder", "quantization_config"))
    references = dict(config.frozen_references or {})
    parts: dict[str, Any] = dict.fromkeys(PART_ARGUMENTS)
    for part in references:
        source = sources[part]
        if source is not None:
            references[part] = make_reference(source, {})
        arguments = dict(references[part])
        name = arguments.pop("name_or_path")
        part_kwargs = {**common, **arguments, **(placement if part == "language_model" else {})}
        try:
            parts[part] = load_part(part, name if source is None else source, **part_kwargs)
        except OSError as error:
            raise OSError(
                f"{path} was saved without its `{part}`, which is loaded from where it was. Make it available there "
                f"again, or pass its new place: `from_pretrained(..., {PART_ARGUMENTS[part]}=...)`. {error}"
            ) from error
        _adopt(config, part, parts[part], path)

    config.frozen_references = None
    config.name_or_path = os.fspath(path)
    model = assemble(model_class, config, **parts)
    model.frozen_references = references
    _load_remaining_weights(model, path, references, kwargs)
    try:
        model.generation_config = GenerationConfig.from_pretrained(path, **select(kwargs, HUB_ARGUMENTS))
    except OSError:
        model.generation_config = GenerationConfig.from_model_config(config)
    if adapter is not None:
        model.load_adapter(**adapter)
    if kwargs.get("output_loading_info"):
        return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
    return model


def _load_remaining_weights(
    model: "ComposedModel", path: Source, parts: Iterable[str], kwargs: dict[str, Any]
) -> None:
    file_kwargs = select(kwargs, (*HUB_ARGUMENTS, "revision", "subfolder"))
    weights_file = cached_file(path, SAFE_WEIGHTS_NAME, **file_kwargs)
    missing, unexpected = model.load_state_dict(load_file(weights_file or ""), strict=False)
    missing = [name for name in missing if name not in model.all_tied_weights_keys and not is_within(name, parts)]
    if missing or unexpected:
        raise ValueError(f"{path} does not fit its configuration: missing {missing}, unexpected {list(unexpected)}.")


def _adopt(config: AudioListenConfig, part_name: str, part: PreTrainedModel, path: Source) -> None:
    """Lets `config` share the configuration of a part that was loaded from elsewhere, once it is known to fit."""
    saved = getattr(config, _CONFIG_NAMES[part_name])
    for field in ("model_type", "hidden_size", "num_hidden_layers"):
        if getattr(part.config, field) != getattr(saved, field):
            raise ValueError(
                f"The `{part_name}` that was loaded is not the one {path} was saved with: its `{field}` is "
                f"{getattr(part.config, field)}, not {getattr(saved, field)}."
            )
    if part_name == "language_model":
        fit_vocabulary(part, saved.vocab_size)
    setattr(config, _CONFIG_NAMES[part_name], part.config)
