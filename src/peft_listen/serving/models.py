"""The models of a server: one language model, whose adapters have names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from peft import PeftModel
from transformers import Pipeline

from ..lora_beside import has_lora_beside
from ..pipelines import AudioTextToTextPipeline
from ..pipelines.loading import check_model_name, find_base, load_pipeline
from ..run_folder import display_name


class ServedModels:
    """
    The names by which clients select an adapter, and the pipeline that they share.

    Args:
        pipe ([`AudioTextToTextPipeline`]): The pipeline. Only one thread at a time may call it. [`load_models`] may return
            the pipeline of a language model without audio, which [`Server`] does not take.
        names (`dict[str, str]` or `str`): Names of models and the adapters of `pipe.model` that they are; or the name of
            `pipe.model` as it is.

    Raises:
        ValueError: There is no name.
    """

    def __init__(self, pipe: Pipeline, names: dict[str, str] | str) -> None:
        self.pipe: Any = pipe
        self._adapters: dict[str, str | None] = {names: None} if isinstance(names, str) else dict(names)
        self._active: str | None = None
        if not self._adapters or not all(self._adapters):
            raise ValueError("A served model needs a name.")

    def __contains__(self, name: str) -> bool:
        return name in self._adapters

    @property
    def names(self) -> list[str]:
        """The names, the first of which is that of the first model."""
        return list(self._adapters)

    def activate(self, name: str) -> None:
        """Activates the adapter of a model for the following calls of the pipeline."""
        adapter = self._adapters[name]
        if adapter is not None and adapter != self._active:
            self.pipe.model.set_adapter(adapter)
            self._active = adapter


def name_models(models: Sequence[str]) -> dict[str, str]:
    """
    Names of models for those who ask them.

    Args:
        models (`Sequence[str]`):
            Folders or Hub names, each with a name before it if needed: `dogs=runs/3/model`. Without one, the name is that of
            the Hub, that of the folder without its parents, or for the model of a training run that of the run's folder.

    Returns:
        `dict[str, str]`: folders or Hub names, by name.

    Raises:
        ValueError: There is no model, or two have the same name.
        FileNotFoundError: There is no such folder.
    """
    paths: dict[str, str] = {}
    for given in models:
        name, path = _split(given)
        if name in paths:
            raise ValueError(
                f"{paths[name]!r} and {path!r} would both be served as {name!r}. Give them names: one={paths[name]} two={path}"
            )
        paths[name] = path
    if not paths:
        raise ValueError("Name at least one model.")
    for path in paths.values():
        check_model_name(path)
    return paths


def load_models(
    models: Sequence[str], dtype: str | None = None, device: str | None = None, accepts_text_models: bool = False
) -> ServedModels:
    """
    Loads a model, or several adapters of one base model, which is loaded once.

    Args:
        models (`Sequence[str]`): Folders or Hub names, each with a name before it if needed, as in [`name_models`].
        dtype, device (`str`, *optional*): As in [`~peft_listen.pipelines.loading.load_pipeline`].
        accepts_text_models (`bool`, *optional*, defaults to `False`):
            Whether a language model without audio is loaded too.

    Returns:
        [`ServedModels`]: the models.

    Raises:
        ValueError: There is no model, two have the same name, or several are not adapters of the same base model, or have
            LoRA adapters beside the prompts.
        OSError: A model cannot be loaded.
    """
    paths = name_models(models)
    first, *others = paths.values()
    if not others:
        return ServedModels(load_pipeline(first, dtype, device, accepts_text_models), next(iter(paths)))
    bases = {path: find_base(path) for path in paths.values()}
    for path, (base, is_adapter) in bases.items():
        if not is_adapter or base != bases[first][0]:
            found = f"an adapter of {base!r}" if is_adapter else "not an adapter"
            raise ValueError(
                f"Several models can only be served together if they are adapters of the same base model: {first!r} has the "
                f"base {bases[first][0]!r}, and {path!r} is {found}. Serve them on two ports."
            )
    for path in paths.values():
        if has_lora_beside(path):
            raise ValueError(f"{path!r} has a LoRA adapter beside the prompts, so it cannot be served with others.")
    pipe = load_pipeline(bases[first][0], dtype, device, accepts_text_models)
    adapters = {name: f"adapter-{number}" for number, name in enumerate(paths)}
    model: Any = None
    for name, path in paths.items():
        if model is None:
            model = PeftModel.from_pretrained(pipe.model, path, adapter_name=adapters[name])
        else:
            model.load_adapter(path, adapter_name=adapters[name])
    model.eval()
    if isinstance(pipe, AudioTextToTextPipeline):
        pipe = AudioTextToTextPipeline(model, processor=pipe.processor, device=pipe.device)
    else:
        pipe.model = model
    return ServedModels(pipe, adapters)


def _split(model: str) -> tuple[str, str]:
    """Name for clients, and folder or Hub name."""
    name, separator, path = model.partition("=")
    if separator and not os.path.exists(model):
        if not name or not path:
            raise ValueError(f"{model!r} is not of the form NAME=MODEL.")
        return name, path
    return display_name(model), model
