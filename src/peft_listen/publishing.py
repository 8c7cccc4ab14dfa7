"""
Saves and uploads a model with everything that loading it takes: the audio model, its adapter and its processor in one
folder, with references to the frozen parts in place of their weights; or an adapter and the processor of a model of
transformers, which is on the Hub.

An adapter alone names the folder of its base model, which exists on one machine only.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo, HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING
from peft.utils import CONFIG_NAME
from transformers import PreTrainedModel, ProcessorMixin
from transformers import initialization as init

from .adapter_folder import hub_base_name, save_adapters
from .folder_saving import replaced_checkpoint
from .hub_connection import hub_connection
from .hub_names import is_hub_name
from .hub_repository import prepare_repository
from .lora_beside import LORA_NAME
from .model_card import GENERATED_MARK, write_model_card
from .models.audio_listen import AudioListenForCausalLM
from .models.audio_listen.frozen_references import is_referenced
from .models.audio_listen.parts import PARTS, Part
from .models.audio_listen.references import Reference


if TYPE_CHECKING:
    from .analysis import SelectionRecords
    from .metrics import TaskScore

# Patterns of the files of an older version of the repository that would be loaded in place of the new ones, or beside them.
# They contain no "*", which also matches "/", so the files of subfolders stay.
_SHARD = "-" + "[0-9]" * 5 + "-of-" + "[0-9]" * 5
_REPLACED_FILES = [
    *(
        f"{weights}{ending}"
        for weights in ("model", "adapter_model")
        for ending in (".safetensors", f"{_SHARD}.safetensors", ".safetensors.index.json")
    ),
    "adapter_model.bin",
]
_MODEL_CONFIG = "config.json"
_LORA_FILES = [f"{LORA_NAME}/{CONFIG_NAME}", f"{LORA_NAME}/adapter_model.safetensors"]
# Components of the names of modules that PEFT puts around a module of the base model.
_WRAPPERS = ("base_layer", "original_module")
_WITHOUT_HUB = "`save_complete_model` writes the same files to a folder, which can be uploaded later."


def save_complete_model(
    model: PeftModel | AudioListenForCausalLM,
    processor: ProcessorMixin,
    save_directory: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    include: Collection[str] = (),
    scores: Mapping[str, TaskScore] | None = None,
    training: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = (),
    selections: SelectionRecords | None = None,
) -> None:
    """
    Saves an audio model, its adapter and its processor in one folder, which
    `pipeline("audio-text-to-text", model=save_directory)` loads. Encoders and language model are saved as references to
    their repositories on the Hub, which must contain the weights that the model has. A LoRA adapter of the name "lora" that
    was trained together with a LiSTEN adapter is saved in the subfolder `lora`, and both are loaded. A part whose
    parameters require gradients counts as trained and must be in `include`. Weights that were changed in another way,
    for example by merging an adapter into them, are not detected: include these parts too.

    Of an adapter on another audio language model of transformers, such as Qwen2-Audio, the adapter and the processor
    are saved; it names its base model on the Hub.

    Args:
        model (`PeftModel` or [`AudioListenForCausalLM`]):
            The audio model, with or without an adapter; another audio language model with an adapter.
        processor (`ProcessorMixin`):
            Its processor.
        save_directory (`str` or `os.PathLike`):
            The folder. A model and an adapter in it are replaced; other files stay.
        repo_id (`str`, *optional*):
            Name of the repository that the folder will be uploaded to. The adapter names it as the place of its base
            model; by default, the folder.
        include (`Collection[str]`, *optional*):
            Parts whose weights are saved instead of a reference: `"speech"`, `"sound"`, `"llm"`. Needed for parts that were
            loaded from a file or folder, such as an original BEATs checkpoint, and for parts that were trained or merged.
        scores (`Mapping[str, TaskScore]`, *optional*):
            Scores of [`~peft_listen.metrics.score_predictions`] for the model card.
        training (`Mapping[str, Any]`, *optional*):
            Settings of the training by name, for a table in the model card. The item `"command"`, if there is one, is shown
            below the table.
        datasets (`Sequence[str]`, *optional*):
            Names on the Hub of the data sets of the training, for the metadata of the model card.
        selections ([`~peft_listen.analysis.SelectionRecords`], *optional*):
            Selections of the adapter, from [`~peft_listen.analysis.record_dataset`]. The model card then shows which prompts each
            task selects, in the file `prompts_by_task.png`, if there are 2 to 100 tasks and matplotlib is installed.

    Raises:
        `TypeError`: if the model is neither an audio model of this package nor another one with an adapter.
        `ValueError`: if a part is not on the Hub or requires gradients, and is not in `include`, the model has other adapters
            than one, or one LiSTEN adapter and a LoRA adapter of the name "lora", or another base model was not loaded by its
            name on the Hub.
    """
    base, adapters = _check_model(model)
    card_name = repo_id or Path(save_directory).name
    if not isinstance(base, AudioListenForCausalLM):
        base_name = hub_base_name(base, include)
        dropped = (*_LORA_FILES, _MODEL_CONFIG)  # with a configuration of its own, the folder would be another model
        with replaced_checkpoint(save_directory, kept=("README.md",), dropped=dropped) as folder:
            save_adapters(model, adapters, folder, base_name, base_name)
            processor.save_pretrained(folder)
            write_model_card(model, folder / "README.md", card_name, scores, training, datasets, selections)
        return
    references = _references(base, include, bool(adapters))
    with replaced_checkpoint(save_directory, kept=("README.md",), dropped=_LORA_FILES) as folder:
        weights = _base_weights(base, references)
        with _saved_as_a_whole(base):
            base.save_with_references(folder, references, state_dict=weights)
        if adapters:
            save_adapters(model, adapters, folder, repo_id or os.fspath(save_directory), str(folder))
        processor.save_pretrained(folder)
        write_model_card(model, folder / "README.md", card_name, scores, training, datasets, selections)


def publish(
    model: PeftModel | AudioListenForCausalLM,
    processor: ProcessorMixin,
    repo_id: str,
    *,
    include: Collection[str] = (),
    commit_message: str = "Upload model",
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
    scores: Mapping[str, TaskScore] | None = None,
    training: Mapping[str, Any] | None = None,
    datasets: Sequence[str] = (),
    selections: SelectionRecords | None = None,
) -> CommitInfo:
    """
    Uploads an audio model, its adapter and its processor to one repository on the Hub, in one commit. Everybody with
    access to it and to the published parts loads them with `pipeline("audio-text-to-text", model=repo_id)`.

    The files are those of [`save_complete_model`]. An existing model card keeps its text, and is completed.

    Args:
        model (`PeftModel` or [`AudioListenForCausalLM`]):
            The audio model, with or without an adapter; another audio language model with an adapter.
        processor (`ProcessorMixin`):
            Its processor.
        repo_id (`str`):
            Name of the repository, which is created if it does not exist.
        include (`Collection[str]`, *optional*):
            Parts whose weights are uploaded instead of a reference: `"speech"`, `"sound"`, `"llm"`. Needed for parts that are
            not on the Hub, were trained, or were changed by merging an adapter.
        commit_message (`str`, *optional*, defaults to `"Upload model"`):
            Message of the commit.
        private (`bool`, *optional*):
            Whether a new repository is private; by default, what the account or organization has set.
        token (`bool` or `str`, *optional*):
            Token of the Hub; by default, the one of `hf auth login`.
        revision (`str`, *optional*):
            Branch to upload to, which is created if it does not exist; by default, the main branch.
        create_pr (`bool`, *optional*, defaults to `False`):
            Whether to open a pull request instead.
        tags (`list[str]`, *optional*):
            Tags to add to the model card.
        scores (`Mapping[str, TaskScore]`, *optional*):
            Scores of [`~peft_listen.metrics.score_predictions`] for the model card.
        training (`Mapping[str, Any]`, *optional*):
            Settings of the training by name, for a table in the model card. The item `"command"`, if there is one, is shown
            below the table.
        datasets (`Sequence[str]`, *optional*):
            Names on the Hub of the data sets of the training, for the metadata of the model card.
        selections ([`~peft_listen.analysis.SelectionRecords`], *optional*):
            Selections of the adapter, from [`~peft_listen.analysis.record_dataset`]. The model card then shows which prompts each
            task selects, in the file `prompts_by_task.png`, if there are 2 to 100 tasks and matplotlib is installed.

    Returns:
        `huggingface_hub.CommitInfo`: address and id of the commit.

    Raises:
        `TypeError`: if the model is neither an audio model of this package nor another one with an adapter.
        `ValueError`: if a part is not on the Hub or requires gradients, and is not in `include`, the model has other adapters
            than one, or one LiSTEN adapter and a LoRA adapter of the name "lora", or another base model was not loaded by its
            name on the Hub.
        `huggingface_hub.errors.HfHubHTTPError`: if the Hub refuses the upload; if the account may not write to the repository,
            nothing was uploaded, and the message says how to log in.
        `ConnectionError`: if the Hub cannot be reached.
    """
    check_can_be_published(model, include)  # before a repository is created
    with hub_connection(_WITHOUT_HUB):
        repo_id = prepare_repository(repo_id, private=private, token=token, revision=revision, create_pr=create_pr)
        card = _load_card(repo_id, tags or [], token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        folder.mkdir()
        card.save(folder / "README.md")
        save_complete_model(
            model,
            processor,
            folder,
            repo_id=repo_id,
            include=include,
            scores=scores,
            training=training,
            datasets=datasets,
            selections=selections,
        )
        replaced = [name for name in (CONFIG_NAME, _MODEL_CONFIG, *_LORA_FILES) if not (folder / name).exists()]
        with hub_connection(_WITHOUT_HUB):
            return HfApi(token=token).upload_folder(
                repo_id=repo_id,
                folder_path=folder,
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
                delete_patterns=[*_REPLACED_FILES, *replaced],
            )


def check_can_be_published(model: PeftModel | AudioListenForCausalLM, include: Collection[str] = ()) -> None:
    """
    Checks that [`publish`] accepts a model. Call it before a long training.

    Args:
        model (`PeftModel` or [`AudioListenForCausalLM`]):
            The audio model, with or without an adapter.
        include (`Collection[str]`, *optional*):
            Parts whose weights are uploaded instead of a reference.

    Raises:
        `TypeError`, `ValueError`: see [`publish`].
    """
    base, adapters = _check_model(model)
    if isinstance(base, AudioListenForCausalLM):
        _references(base, include, bool(adapters))
    else:
        hub_base_name(base, include)


def _check_model(model: Any) -> tuple[PreTrainedModel, list[str]]:
    """The base model, and the names of its adapter and of the LoRA adapter that was trained together with it."""
    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    if not isinstance(base, AudioListenForCausalLM) and "audio" not in getattr(base, "input_modalities", ()):
        raise TypeError(
            f"Expected an AudioListenForCausalLM or a PeftModel of an audio model, got a {type(base).__name__}. An adapter of a "
            "text model needs its base model alone, so upload it with `model.push_to_hub(repo_id)`."
        )
    if not isinstance(base, AudioListenForCausalLM) and base is model:
        raise TypeError(
            f"A {type(base).__name__} is published without its base model, and this one has no adapter. Pass a `PeftModel`, or "
            "upload the model with `model.push_to_hub(repo_id)`."
        )
    if base is model and getattr(base, "_hf_peft_config_loaded", False):
        raise TypeError(
            "The adapter of this model was added by `load_adapter`, as the pipeline does. Load it with "
            "`PeftModel.from_pretrained(base, adapter)` and pass the result."
        )
    names = list(model.peft_config) if isinstance(model, PeftModel) else []
    names.sort(key=lambda name: name == LORA_NAME)
    are_together = names[1:] == [LORA_NAME] and [_kind(model, name) for name in names] == ["LISTEN", "LORA"]
    if len(names) > 1 and not are_together:
        raise ValueError(
            f"The model has the adapters {', '.join(names)}, but one folder can hold one adapter beside its base model, and "
            f"with a LiSTEN adapter also a LoRA adapter of the name {LORA_NAME!r}. Delete the others with "
            "`model.delete_adapter(name)`, or publish the base model with `peft_listen.publish(base, ...)` and push the "
            "adapters to repositories of their own."
        )
    return base, names


def _kind(model: Any, adapter_name: str) -> str:
    peft_type: Any = model.peft_config[adapter_name].peft_type
    return str(getattr(peft_type, "value", peft_type))


def _references(base: AudioListenForCausalLM, include: Collection[str], has_adapter: bool) -> dict[str, Reference]:
    """References to the parts that are on the Hub, except for those in `include`."""
    known = [part.argument for part in PARTS]
    unknown = [name for name in include if name not in known]
    if isinstance(include, str) or unknown:
        raise ValueError(f"`include` must be a list of {', '.join(map(repr, known))}, got {include!r}.")
    references, missing, trained = {}, [], []
    for part in PARTS:
        if part.argument in include or getattr(base.config, part.config_name) is None:
            continue
        # PEFT freezes the base model, except for weights that it saves with the adapter.
        if not has_adapter and _is_trained(base, part):
            trained.append(repr(part.argument))
        reference = base.frozen_references.get(part.name, {})
        if is_hub_name(reference.get("name_or_path")):
            references[part.name] = reference
        else:
            place = reference.get("name_or_path")
            missing.append(f"{part.argument!r} " + (f"was loaded from {place}" if place else "has no source"))
    if missing:
        raise ValueError(
            f"Only parts on the Hub can be published as references, but {' and '.join(missing)}. Upload the weights too with "
            "`include=[...]` if their license permits it, or build the model from the part's name on the Hub."
        )
    if trained:
        names = ", ".join(trained)
        raise ValueError(
            f"Expected frozen parts, whose references are saved in place of their weights, but parameters of {names} require "
            f"gradients, so these parts count as trained; pass include=[{names}] to save their weights, or call "
            "`model.freeze()` if they were not trained."
        )
    return references


def _is_trained(base: AudioListenForCausalLM, part: Part) -> bool:
    """Whether a parameter of the part requires gradients that is not a parameter of an adapter."""
    return any(
        weight.requires_grad and part.owns(_base_name(name)) and not _is_of_adapter(name)
        for name, weight in base.named_parameters()
    )


def _is_of_adapter(weight_name: str) -> bool:
    prefixes = tuple(set(PEFT_TYPE_TO_PREFIX_MAPPING.values()))
    path = weight_name.split(".")
    return "modules_to_save" in path or any(module.startswith(prefixes) for module in path)


def _base_name(weight_name: str) -> str:
    """The name that a weight of the base model has without an adapter."""
    return ".".join(module for module in weight_name.split(".") if module not in _WRAPPERS)


def _base_weights(base: AudioListenForCausalLM, references: Collection[str]) -> dict[str, torch.Tensor]:
    """The weights of the audio model without its adapters, under the names that they have without them."""
    weights = {_base_name(name): weight for name, weight in base.state_dict().items() if not _is_of_adapter(name)}
    with torch.device("meta"), init.no_init_weights():
        expected = set(AudioListenForCausalLM(copy.deepcopy(base.config)).state_dict())
    differing = [name for name in sorted(expected ^ weights.keys()) if not is_referenced(name, references)]
    if differing:
        raise ValueError(
            f"The adapter changes the base model in a way that cannot be undone for saving: {', '.join(differing)}. Save the "
            "base model before you add the adapter."
        )
    return weights


@contextmanager
def _saved_as_a_whole(base: Any) -> Iterator[None]:
    """
    After `load_adapter`, which loads LoRA beside the prompts, `save_pretrained` of transformers would save the adapter alone, and
    give the weights the names that they have in an adapter.
    """
    if not getattr(base, "_hf_peft_config_loaded", False):
        yield
        return
    conversions = base._weight_conversions
    base._hf_peft_config_loaded, base._weight_conversions = False, None
    try:
        yield
    finally:
        base._hf_peft_config_loaded, base._weight_conversions = True, conversions


def _load_card(repo_id: str, tags: list[str], token: bool | str | None) -> ModelCard:
    """The card of a repository, or a card that counts as generated, with these tags."""
    try:
        card = ModelCard.load(repo_id, token=token)  # type: ignore[arg-type]
    except LocalEntryNotFoundError:
        raise  # the Hub cannot be reached; a new card would replace the one that is there
    except EntryNotFoundError:
        return ModelCard.from_template(
            ModelCardData(tags=tags), template_str="---\n{{ card_data }}\n---\n\n" + GENERATED_MARK
        )
    card.data.tags = sorted({*(card.data.tags or []), *tags})
    return card
