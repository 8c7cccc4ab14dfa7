"""
References to frozen parts: `save_pretrained(..., save_frozen=False)` stores them in place of the weights, and
`from_pretrained` loads the parts from them.
"""

import copy
import os
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.configuration_utils import PreTrainedConfig
from transformers.integrations.peft import maybe_load_adapters
from transformers.modeling_utils import PreTrainedModel
from transformers.utils.hub import resolve_revision

from .configuration_audio_listen import AudioListenConfig
from .hub_arguments import FILE_ARGUMENTS, HUB_ARGUMENTS, PART_FILE_ARGUMENTS, Source, subset
from .parts import LANGUAGE_MODEL, PARTS, Part, fit_vocabulary
from .precision import is_chosen
from .references import REFERENCE_FIELDS, Reference, check_references


_PLACEMENT_ARGUMENTS = ("device_map", "max_memory", "offload_folder", "quantization_config")


def make_reference(source: Source | PreTrainedModel, kwargs: dict[str, Any]) -> Reference:
    """
    Records where a part can be loaded from again. `name_or_path` is empty for a model that was not loaded from anywhere.

    Args:
        source (`str`, `os.PathLike` or `PreTrainedModel`): Source of the part.
        kwargs (`dict`): Arguments of its `from_pretrained`.
    """
    name = (source.config.name_or_path or "") if isinstance(source, PreTrainedModel) else os.fspath(source)
    reference = {"name_or_path": name, **subset(kwargs, PART_FILE_ARGUMENTS)}
    if os.path.exists(name):
        reference["name_or_path"] = os.path.abspath(name)
    elif name:
        # Store the commit: a branch may point to another commit later.
        revision = resolve_revision(name, kwargs.get("revision"), **subset(kwargs, ("cache_dir", "token")))
        reference["revision"] = getattr(revision, "resolved", revision)
    return reference


def reference_frozen_parts(model: nn.Module, references: dict[str, Reference]) -> dict[str, Reference]:
    """
    Selects the references to save in place of the frozen parts.

    Args:
        model (`nn.Module`): The model to save.
        references (`dict[str, dict]`): Known references by the name of the part.

    Raises:
        `ValueError`: if a frozen part has no reference.
    """
    frozen = {part.name: references.get(part.name, {}) for part in PARTS if part.is_frozen(model)}
    for name, reference in frozen.items():
        if not reference.get("name_or_path"):
            raise ValueError(
                f"`save_frozen=False` leaves out `{name}`, but it was not loaded from a checkpoint, so it could not be "
                "found again. Save the whole model, or build it with `from_sub_models_pretrained` from saved parts."
            )
    return frozen


def is_referenced(weight_name: str, references: Iterable[str]) -> bool:
    """Whether a weight belongs to one of the parts named in `references`."""
    return any(part.owns(weight_name) for part in PARTS if part.name in references)


def load_referenced_parts(
    config: AudioListenConfig, path: Source, sources: dict[str, Any], kwargs: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Reference]]:
    """
    Loads the parts that a checkpoint refers to, and sets their configurations in `config`.

    Args:
        config ([`AudioListenConfig`]): Configuration of the checkpoint, with `frozen_references`. Changed in place.
        path (`str` or `os.PathLike`): The checkpoint, for error messages.
        sources (`dict`): Sources by the name of the part that replace those of the references, `None` for the others.
        kwargs (`dict`): Arguments of the checkpoint's `from_pretrained`.

    Returns:
        `tuple[dict, dict]`: the parts by name, and the references that they were loaded from.

    Raises:
        `OSError`: if a part is not found; the message names it and the argument that sets its source.
        `ValueError`: if a reference is malformed, or a part differs from the one that the checkpoint was saved with.
    """
    check_references(config.frozen_references)
    common = subset(kwargs, (*HUB_ARGUMENTS, "attn_implementation"))
    dtype = kwargs.get("dtype") or kwargs.get("torch_dtype")
    # "auto" is the data type of this checkpoint, and not a different one for each part.
    common["dtype"] = dtype if is_chosen(dtype) else config.dtype
    references = dict(config.frozen_references or {})
    loaded = {}
    for part in PARTS:
        if part.name not in references:
            continue
        source = sources[part.name]
        if source is not None:
            references[part.name] = make_reference(source, {})
        arguments: dict[str, Any] = subset(references[part.name], REFERENCE_FIELDS)
        name = arguments.pop("name_or_path")
        if source is None:
            _check_saved_type(config, part, path, name, {**subset(kwargs, HUB_ARGUMENTS), **arguments})
        if part is LANGUAGE_MODEL:
            arguments.update(subset(kwargs, _PLACEMENT_ARGUMENTS))
            # Whether code of the repository may run is the caller's decision, not that of the checkpoint.
            arguments["trust_remote_code"] = bool(kwargs.get("trust_remote_code"))
        try:
            loaded[part.name] = part.load(name if source is None else source, **{**common, **arguments})
        except OSError as error:
            raise OSError(
                f"{path} was saved without its `{part.name}`, which cannot be loaded from its saved location. Make it "
                f"available there again, or pass its new location: `from_pretrained(..., {part.argument}=...)`. {error}"
            ) from error
        _set_config(config, part, loaded[part.name], path)
    config.frozen_references = None
    return loaded, references


def _check_saved_type(
    config: AudioListenConfig, part: Part, path: Source, name: str, file_kwargs: dict[str, Any]
) -> None:
    """
    Compares the model type of a referenced part with that of the saved configuration, before anything else is loaded: a
    reference to the checkpoint itself would otherwise be followed without end.
    """
    if os.path.isfile(name) or file_kwargs.get("gguf_file"):
        return  # the loader knows the type
    try:
        found, _ = PreTrainedConfig.get_config_dict(name, **file_kwargs)
    except OSError:
        return  # loading explains what is missing
    saved = getattr(config, part.config_name).model_type
    if found.get("model_type", saved) != saved:
        raise ValueError(_not_the_part(part, path, "model_type", found["model_type"], saved))


def _not_the_part(part: Part, path: Source, field: str, found: Any, saved: Any) -> str:
    return f"The `{part.name}` that was loaded is not the one {path} was saved with: its `{field}` is {found}, not {saved}."


def _set_config(config: AudioListenConfig, part: Part, module: PreTrainedModel, path: Source) -> None:
    """Checks a part loaded from elsewhere and uses its configuration in `config`."""
    saved = getattr(config, part.config_name)
    for field in ("model_type", "hidden_size", "num_hidden_layers"):
        if getattr(module.config, field) != getattr(saved, field):
            found = getattr(module.config, field)
            raise ValueError(_not_the_part(part, path, field, found, getattr(saved, field)))
    if part is LANGUAGE_MODEL:
        fit_vocabulary(module, saved.vocab_size)
    setattr(config, part.config_name, module.config)


def load_config(path: Source, kwargs: dict[str, Any]) -> AudioListenConfig:
    """The configuration that `from_pretrained(path, **kwargs)` uses."""
    config = kwargs.get("config")
    if isinstance(config, AudioListenConfig):
        return copy.deepcopy(config)
    return AudioListenConfig.from_pretrained(config or path, **subset(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS))


def resolve_adapter(path: Source, kwargs: dict[str, Any]) -> tuple[Source, dict[str, Any] | None]:
    """
    Finds the base model and the adapter that `from_pretrained(path, **kwargs)` loads: `path` may be the folder of an
    adapter, and the Auto classes pass the adapter's arguments along with the path of its base model.

    Returns:
        `tuple[str, dict | None]`: path of the base model, and arguments of `load_adapter`, `None` without an adapter.
    """
    download_kwargs: Any = subset(kwargs, HUB_ARGUMENTS + FILE_ARGUMENTS)
    adapter_kwargs = dict(kwargs.get("adapter_kwargs") or {})
    adapter_path, base, adapter_kwargs = maybe_load_adapters(os.fspath(path), download_kwargs, **adapter_kwargs)
    if adapter_path is None:
        return path, None
    name = kwargs.get("adapter_name", "default")
    return base, {"peft_model_id": adapter_path, "adapter_name": name, "adapter_kwargs": adapter_kwargs}
