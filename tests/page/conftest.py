"""Models whose answers depend on clip, instruction, adapter and number of prompts, for the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForMultimodalLM

from peft_listen import ListenConfig
from peft_listen.analysis import SelectionRecords, record_dataset
from peft_listen.pipelines.loading import load_pipeline
from tests import small_models


pytest.importorskip("gradio", reason="the page needs the extra `page`")

from peft_listen.page import Answering, PageSettings, TaskShares
from peft_listen.serving import ServedModels, load_models


LENGTH = 8
POOL_SIZES = {"dogs": 8, "cats": 9}
PROMPT_LENGTHS = {"dogs": 4, "cats": 3}


@pytest.fixture(scope="session")
def adapters(composite_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of two adapters of `composite_folder`, with a projector each."""
    folders = {}
    for seed, name in enumerate(POOL_SIZES):
        base = AutoModelForMultimodalLM.from_pretrained(composite_folder)
        settings = {"pool_size": POOL_SIZES[name], "prompt_length": PROMPT_LENGTHS[name], "seed": seed}
        model = get_peft_model(
            base, ListenConfig(**settings, init_weights=False, modules_to_save=["multi_modal_projector"])
        )
        for parameter_name, parameter in model.named_parameters():
            if "modules_to_save" in parameter_name:
                parameter.data *= 1.5 + seed
        folders[name] = str(tmp_path_factory.mktemp("adapters") / name)
        model.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="session")
def text_adapter(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an adapter of a language model without audio."""
    folder = tmp_path_factory.mktemp("text")
    small_models.make_llm("llama").save_pretrained(folder / "base")
    small_models.make_tokenizer().save_pretrained(folder / "base")
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    get_peft_model(base, ListenConfig(pool_size=8, prompt_length=3, init_weights=False)).save_pretrained(
        folder / "own"
    )
    return str(folder / "own")


@pytest.fixture(scope="session")
def models(adapters: dict[str, str]) -> ServedModels:
    return load_models([f"{name}={folder}" for name, folder in adapters.items()])


@pytest.fixture(scope="session")
def make_records(adapters: dict[str, str], examples: list[dict[str, Any]]) -> Callable[[str], SelectionRecords]:
    """The selections of an adapter for `examples`."""

    def make(name: str) -> SelectionRecords:
        return record_dataset(load_pipeline(adapters[name]), examples)

    return make


@pytest.fixture(scope="session")
def records(make_records: Callable[[str], SelectionRecords]) -> SelectionRecords:
    """Those of the adapter `dogs`."""
    return make_records("dogs")


@pytest.fixture(scope="session")
def answering(models: ServedModels, records: SelectionRecords) -> Answering:
    settings = PageSettings(max_new_tokens=LENGTH, max_audio_seconds=3.0, max_upload_bytes=200_000)
    return Answering(models, settings, {"dogs": TaskShares.from_records(records)})


@pytest.fixture(scope="session")
def single(adapters: dict[str, str]) -> Answering:
    """One adapter, which transformers loads into the model."""
    return Answering(load_models([adapters["dogs"]]), PageSettings(max_new_tokens=LENGTH))


@pytest.fixture(scope="session")
def plain(composite_folder: Path) -> Answering:
    """A model without an adapter."""
    return Answering(load_models([f"plain={composite_folder}"]), PageSettings(max_new_tokens=LENGTH))


@pytest.fixture(scope="session")
def text_only(text_adapter: str) -> Answering:
    return Answering(load_models([text_adapter], accepts_text_models=True), PageSettings(max_new_tokens=LENGTH))


@pytest.fixture(scope="session")
def expected(adapters: dict[str, str], composite_folder: Path) -> Callable[..., str]:
    """The answer of a pipeline of its own to a clip: of an adapter, or of the base model for `None`."""
    pipes: dict[str | None, Any] = {}

    def answer(name: str | None, clip: str, question: str, prompt_length: int | None = None) -> str:
        from peft_listen import use_prompt_length

        if name not in pipes:
            pipes[name] = load_pipeline(str(composite_folder) if name is None else adapters[name])
        pipe = pipes[name]
        with torch.no_grad():
            if prompt_length is None:
                (output,) = pipe(clip, text=question, max_new_tokens=LENGTH)
            else:
                with use_prompt_length(pipe.model, prompt_length):
                    (output,) = pipe(clip, text=question, max_new_tokens=LENGTH)
        return str(output["generated_text"])

    return answer
