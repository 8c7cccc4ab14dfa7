import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.mini_listen import beats as beats_module
from benchmarks.mini_listen.beats import ALL_LABELS, LABELS, BeatsTraining, train_beats
from benchmarks.mini_listen.data import VOICES, make_data
from benchmarks.mini_listen.settings import FORMS
from peft_listen.audio import load_audio
from peft_listen.models.beats import BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel


pytest.importorskip("espeakng_loader")
pytest.importorskip("soxr")
pytest.importorskip("soundfile")

TINY = replace(
    BeatsTraining(epochs=1),
    model={
        **BeatsTraining().model,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("made") / "data", FORMS["smoke"].sizes)


@pytest.fixture(scope="module")
def checkpoint(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "beats.pt"
    train_beats(data_dir, path, TINY)
    return path


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["model"]


def test_the_checkpoint_is_in_the_original_format(checkpoint: Path) -> None:
    stored = torch.load(checkpoint, weights_only=True)
    assert set(stored) == {"cfg", "model", "label_dict"}
    assert stored["cfg"]["finetuned_model"] is True
    assert stored["cfg"]["encoder_embed_dim"] == 16
    assert stored["label_dict"] == dict(enumerate(ALL_LABELS))
    encoder = BeatsModel.from_original_checkpoint(checkpoint)
    assert encoder.config.hidden_size == 16
    with torch.no_grad():
        assert encoder(torch.randn(1, 100, 128)).last_hidden_state.shape == (1, 48, 16)


def test_labels_name_sounds_emotions_and_the_voices_of_training_alone() -> None:
    assert {kind: len(labels) for kind, labels in LABELS.items()} == {"sound": 16, "emotion": 4, "voice": 19}
    assert len(set(ALL_LABELS)) == len(ALL_LABELS) == 39
    for split in ("validation", "test"):
        for voices in VOICES[split].values():
            assert set(LABELS["voice"]).isdisjoint(voices)


def test_the_record_tells_accuracies_settings_and_the_data(checkpoint: Path, data_dir: Path) -> None:
    record = json.loads(checkpoint.with_suffix(".json").read_text())
    assert set(record["accuracy"]) == {"sound", "emotion", "voice"}
    assert all(0 <= value <= 1 for value in record["accuracy"].values())
    assert record["settings"]["epochs"] == 1
    assert record["data_sha256"] == json.loads((data_dir / "manifest.json").read_text())["sha256"]
    assert record["parameters"] == BeatsForAudioClassification.from_original_checkpoint(checkpoint).num_parameters()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    checkpoint: Path, data_dir: Path, tmp_path: Path
) -> None:
    state = torch.random.get_rng_state()
    train_beats(data_dir, tmp_path / "again.pt", TINY)
    assert torch.equal(torch.random.get_rng_state(), state)
    train_beats(data_dir, tmp_path / "other.pt", replace(TINY, seed=1))
    first, again, other = (weights(path) for path in (checkpoint, tmp_path / "again.pt", tmp_path / "other.pt"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["predictor.weight"], other["predictor.weight"])


def test_a_checkpoint_is_reused_only_if_settings_and_data_agree(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "beats.pt"
    accuracy = train_beats(data_dir, path, TINY)
    before = path.stat().st_mtime_ns
    capsys.readouterr()
    assert train_beats(data_dir, path, TINY) == accuracy
    assert capsys.readouterr().out == f"reusing {path}\n"
    assert path.stat().st_mtime_ns == before
    train_beats(data_dir, path, replace(TINY, learning_rate=1e-4))
    assert path.stat().st_mtime_ns > before
    assert json.loads(path.with_suffix(".json").read_text())["settings"]["learning_rate"] == 1e-4
    assert sorted(file.name for file in path.parent.iterdir()) == ["beats.json", "beats.pt"]


def test_training_learns_the_sounds_of_its_clips(data_dir: Path, tmp_path: Path) -> None:
    small = {**BeatsTraining().model, "hidden_size": 48, "num_hidden_layers": 2, "intermediate_size": 96}
    accuracy = train_beats(data_dir, tmp_path / "beats.pt", BeatsTraining(epochs=40, tasks=("acap",), model=small))
    assert set(accuracy) == {"sound"}
    model = BeatsForAudioClassification.from_original_checkpoint(tmp_path / "beats.pt")
    rows = [json.loads(line) for line in (data_dir / "train.jsonl").read_text().splitlines()]
    heard = right = 0
    for row in [row for row in rows if row["task"] == "acap"]:
        clip = load_audio(str(data_dir / row["audio"]))
        with torch.no_grad():
            logits = model(**BeatsFeatureExtractor()(clip, sampling_rate=16_000, return_tensors="pt")).logits[0]
        best = logits[: len(LABELS["sound"])].topk(len(row["sounds"])).indices
        heard += len(row["sounds"])
        right += len({LABELS["sound"][index] for index in best} & set(row["sounds"]))
    assert right >= 0.8 * heard


def test_data_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"manifest\.json"):
        train_beats(tmp_path, tmp_path / "beats.pt", TINY)


def test_tasks_without_clips_are_refused(data_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no training clips of singing"):
        train_beats(data_dir, tmp_path / "beats.pt", replace(TINY, tasks=("singing",)))


def test_the_command_trains_and_tells_the_accuracies(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        beats_module, "train_beats", lambda *paths: train_beats(*paths[:2], replace(TINY, seed=paths[2].seed))
    )
    monkeypatch.setattr(sys, "argv", ["beats", str(data_dir), str(tmp_path / "b.pt"), "--epochs", "1", "--seed", "4"])
    beats_module.main()
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == ["sound", "emotion", "voice"]
    assert json.loads((tmp_path / "b.json").read_text())["settings"]["seed"] == 4
