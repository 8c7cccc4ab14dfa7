"""Fixtures that the tests of several folders use. `small_models.py` builds the models and clips."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model

import peft_listen
from tests import simulated_device, small_hub, small_models
from tests.device import VARIABLE, named_device, placing, test_device


QUESTIONS = [
    ("What is said?", "the quick brown fox", "asr"),
    ("Which animal is it?", "dog", "sounds"),
    ("How long?", "a second", "asr"),
    ("Is it loud?", "no", "sounds"),
]
SECONDS = (0.9, 0.4, 1.3, 0.7)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Limits torch to one thread: the models are too small for more, and pytest-xdist runs one process per core."""
    torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    try:
        torch.empty(0, device=test_device())
    except (AssertionError, RuntimeError) as error:
        raise pytest.UsageError(
            f"`{VARIABLE}` names {test_device()}, which this machine does not have: {error}"
        ) from error


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if test_device().type == "cpu":
        return
    skipped = {"cpu_only": "runs on the CPU only"}
    if test_device().type == simulated_device.NAME:
        skipped["not_simulated"] = "does not run on the simulated device"
    for item in items:
        for name, consequence in skipped.items():
            for mark in item.iter_markers(name):
                item.add_marker(pytest.mark.skip(reason=f"{consequence}: {mark.args[0]}"))


@pytest.fixture(scope="session", autouse=True)
def _on_test_device() -> Iterator[None]:
    if test_device().type == "cpu":
        yield
    else:
        with placing():
            yield


@pytest.fixture
def simulated() -> Iterator[torch.device]:
    """The device of `simulated_device.py`."""
    if not simulated_device.IS_SUPPORTED:
        pytest.skip("this version of torch has no backends in Python")
    if simulated_device.OWN_PROCESS not in os.environ:
        pytest.skip("tests/test_own_process.py runs it in a process of its own")
    with simulated_device.in_use():
        yield named_device(simulated_device.NAME)


@pytest.fixture
def ffmpeg(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the `ffmpeg` command that `load_audio` finds: the installed one, or that of imageio-ffmpeg."""
    installed = shutil.which("ffmpeg")
    if installed is not None:
        return installed
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    link = Path(tmp_path_factory.mktemp("bin")) / "ffmpeg"
    link.symlink_to(imageio_ffmpeg.get_ffmpeg_exe())
    monkeypatch.setenv("PATH", str(link.parent), prepend=os.pathsep)
    return str(link)


@pytest.fixture
def hub() -> Iterator[small_hub.SmallHub]:
    """An empty Hub on 127.0.0.1."""
    with small_hub.serve() as hub:
        yield hub


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., transformers.PreTrainedModel]:
    return small_models.make_llm


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., transformers.PreTrainedTokenizerFast]:
    return small_models.make_tokenizer


@pytest.fixture(scope="session")
def whisper_config() -> Callable[..., transformers.WhisperConfig]:
    return small_models.make_whisper_config


@pytest.fixture(scope="session")
def beats_config() -> Callable[[], peft_listen.BeatsConfig]:
    return small_models.make_beats_config


@pytest.fixture(scope="session")
def make_processor() -> Callable[..., peft_listen.AudioListenProcessor]:
    return small_models.make_processor


@pytest.fixture(scope="session")
def make_model() -> Callable[..., peft_listen.AudioListenForCausalLM]:
    return small_models.make_model


@pytest.fixture(scope="session")
def published_parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of a Whisper, a BEATs and a Llama checkpoint, as they are published."""
    return small_models.save_published_parts(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def composite_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a saved audio model with random weights and its processor."""
    folder = tmp_path_factory.mktemp("composite")
    small_models.make_model().save_pretrained(folder)
    small_models.make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(composite_folder: Path) -> transformers.Pipeline:
    """The pipeline of `composite_folder`, limited to 6 new tokens."""
    return transformers.pipeline(
        "audio-text-to-text", model=str(composite_folder), device=test_device(), max_new_tokens=6
    )


@pytest.fixture(scope="session")
def make_adapted(composite_folder: Path) -> Callable[[str], PeftModel]:
    """Builds the model of `composite_folder` with an adapter that changes its output visibly."""
    configs: dict[str, Callable[[], Any]] = {
        "listen": lambda: peft_listen.ListenConfig(
            pool_size=12, prompt_length=3, init_weights=False, modules_to_save=["multi_modal_projector"]
        ),
        "lora": lambda: LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False),
    }

    def make(method: str) -> PeftModel:
        base = transformers.AutoModelForMultimodalLM.from_pretrained(composite_folder)
        model = get_peft_model(base, configs[method]()).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data *= 1.5
        return model

    return make


@pytest.fixture(scope="session")
def audio_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Folder of a small audio language model of transformers, by a name of `small_audio_llms.py`."""
    # Imported here, because the tests of the tuner also run with versions of transformers that lack some of these models.
    from tests import small_audio_llms

    folders: dict[str, str] = {}

    def folder(name: str) -> str:
        if name == small_audio_llms.VOXTRAL:
            pytest.importorskip("mistral_common", reason="the processor of Voxtral needs mistral-common")
        if name not in folders:
            folders[name] = str(small_audio_llms.save(name, tmp_path_factory.mktemp("audio llm") / name))
        return folders[name]

    return folder


@pytest.fixture(scope="session")
def clip() -> Callable[..., np.ndarray]:
    return small_models.make_clip


@pytest.fixture(scope="session")
def write_wav() -> Callable[..., Path]:
    return small_models.write_wav


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Paths of four WAV files of different lengths."""
    folder = tmp_path_factory.mktemp("clips")
    return [
        str(small_models.write_wav(folder / f"clip{index}.wav", seconds, seed=index))
        for index, seconds in enumerate(SECONDS)
    ]


@pytest.fixture(scope="session")
def examples(clips: list[str]) -> list[dict[str, Any]]:
    """Rows of a data set, one for each of `clips`."""
    return [
        {"audio": clip, "instruction": instruction, "answer": answer, "task": task}
        for clip, (instruction, answer, task) in zip(clips, QUESTIONS, strict=True)
    ]
