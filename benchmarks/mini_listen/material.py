"""What all runs share: the data, the base model and the encoder outputs; and the model of one run made from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from offline.bfloat16 import convert_linear_layers
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.training import AudioListenCollator, FeatureCache

from .controls import RouteCollator
from .methods import METHODS, Adapted
from .settings import TASKS, Form, RunSettings
from .training import build_features, first_of_each_task, read_split


@dataclass
class Material:
    """
    Data and models that all runs share.

    Args:
        base_dir (`Path`): folder of the base model.
        data_dir (`Path`): folder of the dataset.
        folder (`Path`): folder of the encoder outputs and of trained projectors.
        processor ([`AudioListenProcessor`]): processor of the base model.
        features ([`FeatureCache`]): encoder outputs of all clips.
        train, validation, test (`list[dict]`): examples that every run is evaluated on, task by task.
    """

    base_dir: Path
    data_dir: Path
    folder: Path
    processor: AudioListenProcessor
    features: FeatureCache
    train: list[dict[str, Any]]
    validation: list[dict[str, Any]]
    test: list[dict[str, Any]]


def adapt(settings: RunSettings, material: Material, device: str = "cpu") -> tuple[Adapted, Any]:
    """The base model with the adapter of a run, and the collator of its batches."""
    torch.manual_seed(settings.seed)
    # On a CPU, torch's fused attention is slower than the plain one for so short sequences.
    attention = "eager" if device == "cpu" else "sdpa"
    base = AudioListenForCausalLM.from_pretrained(material.base_dir, attn_implementation=attention)
    if settings.projector_steps:
        base.model.multi_modal_projector.load_state_dict(load_file(projector_path(material, settings.projector_steps)))
    else:
        base.init_projector_from(material.features[row["audio"]] for row in material.train)
    if settings.precision == "bf16":
        convert_linear_layers(base.model.language_model, torch.bfloat16)
    adapted = METHODS[settings.method](base, material.processor, settings.seed, **settings.options)
    collator: Any = AudioListenCollator(material.processor, feature_cache=material.features)
    return adapted, collator if adapted.route is None else RouteCollator(collator, adapted.route)


def projector_path(material: Material, steps: int) -> Path:
    """File of the projector that was trained for some steps before the runs; see `start.py`."""
    return material.folder / f"projector-{steps}.safetensors"


def projector_hash(material: Material, steps: int) -> str | None:
    """Hash of this file, 8 hexadecimal digits; `None` for untrained projectors, which depend on the settings alone."""
    return hashlib.sha256(projector_path(material, steps).read_bytes()).hexdigest()[:8] if steps else None


def prepare(folder: Path, base_dir: Path, data_dir: Path, form: Form, device: str = "cpu") -> Material:
    """
    Loads the processor, computes the encoder outputs of all clips, and reads the examples to evaluate on.

    Args:
        folder (`Path`): receives the folder `features`.
        base_dir (`Path`): folder of the base model.
        data_dir (`Path`): folder of the dataset.
        form ([`Form`]): its tasks, and the number of examples of each.
        device (`str`, defaults to `"cpu"`): where to compute the encoder outputs.

    Returns:
        [`Material`]: what all runs share.
    """
    processor = AudioListenProcessor.from_pretrained(base_dir)
    model = AudioListenForCausalLM.from_pretrained(base_dir)
    splits = {split: read_split(data_dir, split, form.tasks, count) for split, count in form.sizes.items()}
    everything = [row for rows in splits.values() for row in rows]
    features = build_features(model, processor, everything, folder / "features", device)
    # The training loss is measured on as many clips as the validation loss. Answers of one task have similar lengths, so
    # batches of one task end early.
    evaluated = {**splits, "train": first_of_each_task(splits["train"], form.tasks, form.validation_per_task)}
    sorted_rows = {split: sorted(rows, key=lambda row: TASKS.index(row["task"])) for split, rows in evaluated.items()}
    return Material(base_dir, data_dir, folder, processor, features, **sorted_rows)
