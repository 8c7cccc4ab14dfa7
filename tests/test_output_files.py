"""No output follows a symbolic link away or replaces a special file: cards, checkpoints and results of benchmarks."""

import os
import stat
import sys
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from benchmarks.mini_listen.experiments import LORA
from benchmarks.mini_listen.plots import plot
from benchmarks.speed import decoder
from peft_listen import AudioListenForCausalLM
from peft_listen.evaluation import predict, save_scores
from peft_listen.metrics import score_predictions
from peft_listen.settings_record import SettingsRecord
from tests.benchmarks.mini_listen.stored_runs import make_study
from tests.device_nodes import make_null_device


KINDS = ("link to a file", "link to nothing", "link to a folder", "named pipe", "device")


def make_special(path, kind):
    """Puts a special file at `path`, and returns what it refers to."""
    other = path.parent.parent / "other"
    if kind == "device":
        make_null_device(path)
    elif kind == "named pipe":
        os.mkfifo(path)
    else:
        if kind == "link to a folder":
            other.mkdir()
        elif kind == "link to a file":
            other.write_text("---\nlicense: mit\n---\n# Other\n")
        path.symlink_to(other)
    return other


def state(*paths):
    """What may not change: the node itself, and content of regular files."""
    found = []
    for path in paths:
        status = path.lstat() if os.path.lexists(path) else None
        node = status and (status.st_ino, status.st_mode)
        content = path.read_bytes() if status and stat.S_ISREG(status.st_mode) else None
        found.append((node, content, sorted(path.iterdir()) if path.is_dir() else None))
    return found


@pytest.fixture
def written(tmp_path, make_adapted, composite_folder, monkeypatch):
    """Writers of the package and of the benchmarks by the file that they write; each is given its folder."""

    def save_plots(folder):
        plot(make_study({LORA: 0.5}, single=None), folder)

    def measure(folder):
        arguments = ["decoder", "--device", "cpu", "--size", "small", "--layers", "1", "--output"]
        monkeypatch.setattr(sys, "argv", [*arguments, str(folder / "decoder.json")])
        monkeypatch.setattr(decoder.Benchmark, "run", lambda self: pytest.fail("the benchmark must not run"))
        decoder.main()

    def answer(folder):
        row = {"audio": None, "instruction": "What?", "answer": "a tone", "task": "sounds"}
        predict(lambda: pytest.fail("the model must not be loaded"), [row], folder / "predictions.jsonl")

    def score(folder):
        rows = [{"answer": "a", "generated": "a", "task": "sounds"}]
        save_scores(score_predictions(rows), folder)

    return {
        "card of a LiSTEN adapter": ("README.md", lambda folder: make_adapted("listen").save_pretrained(folder)),
        "card of a LoRA adapter": ("README.md", lambda folder: make_adapted("lora").save_pretrained(folder)),
        "card alone": ("README.md", lambda folder: make_adapted("lora").create_or_update_model_card(str(folder))),
        "card for the Hub": (
            "README.md",
            lambda folder: make_adapted("lora")._upload_modified_files(folder, "me/adapter", files_timestamps={}),
        ),
        "weights of an adapter": (
            "adapter_model.safetensors",
            lambda folder: make_adapted("listen").save_pretrained(folder),
        ),
        "configuration of an adapter": (
            "adapter_config.json",
            lambda folder: make_adapted("listen").save_pretrained(folder),
        ),
        "weights of a model": (
            "model.safetensors",
            lambda folder: AudioListenForCausalLM.from_pretrained(composite_folder).save_pretrained(folder),
        ),
        "configuration of a model": (
            "config.json",
            lambda folder: AudioListenForCausalLM.from_pretrained(composite_folder).save_pretrained(folder),
        ),
        "plots": ("full_training_loss.svg", save_plots),
        "measurements": ("decoder.json", measure),
        "answers": ("predictions.jsonl", answer),
        "scores": ("scores.json", score),
        "settings": ("settings.json", lambda folder: SettingsRecord(folder / "settings.json").write({})),
    }


WRITERS = (
    "card of a LiSTEN adapter",
    "card of a LoRA adapter",
    "card alone",
    "card for the Hub",
    "weights of an adapter",
    "configuration of an adapter",
    "weights of a model",
    "configuration of a model",
    "plots",
    "measurements",
    "answers",
    "scores",
    "settings",
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_special_file_is_neither_followed_nor_replaced(written, tmp_path, writer, kind):
    name, write = written[writer]
    folder = tmp_path / "output"
    folder.mkdir()
    special = folder / name
    other = make_special(special, kind)
    before = state(special, other)
    with pytest.raises(
        OSError, match=rf"{name} cannot be written: it is a (symbolic link to|named pipe|character device)"
    ):
        write(folder)
    assert state(special, other) == before
    assert list(folder.iterdir()) == [special]


@pytest.mark.parametrize("method", ["listen", "lora"])
def test_a_card_that_exists_is_completed_in_one_step(make_adapted, tmp_path, monkeypatch, method):
    card = tmp_path / "README.md"
    card.write_text("---\nlicense: mit\n---\n# My adapter\n")
    model = make_adapted(method)
    save = ModelCard.save
    during = []

    def observed_save(self, path, **kwargs):
        save(self, path, **kwargs)
        during.append((Path(path), card.read_text()))

    monkeypatch.setattr(ModelCard, "save", observed_save)
    model.create_or_update_model_card(str(tmp_path))
    assert during and all(path != card and text.endswith("# My adapter\n") for path, text in during)
    assert "license: mit" in card.read_text() and "import peft_listen" in card.read_text()
    assert list(tmp_path.iterdir()) == [card]
