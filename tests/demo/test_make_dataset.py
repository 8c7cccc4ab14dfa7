import hashlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from demo import make_dataset as make_dataset_module
from demo.make_dataset import (
    DURATION_LIMITS,
    EMOTIONS,
    INSTRUCTIONS,
    SAMPLING_RATE,
    SPLITS,
    TASKS,
    make_dataset,
    plan_clips,
    render_clip,
)
from offline.speech_synthesis import EspeakSynthesizer


pytest.importorskip("espeakng_loader")
pytest.importorskip("soxr")
soundfile = pytest.importorskip("soundfile")

SMALL = {"train_per_task": 9, "validation_per_task": 2, "test_per_task": 4}
REPOSITORY = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def read_rows(folder: Path, split: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def small_dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("made") / "data", **SMALL)


def test_every_row_names_an_existing_file_of_its_task(small_dataset: Path) -> None:
    named = []
    for split, count in zip(SPLITS, SMALL.values(), strict=True):
        rows = read_rows(small_dataset, split)
        assert [row["task"] for row in rows] == list(TASKS) * count
        for row in rows:
            assert set(row) == {"audio", "instruction", "answer", "task"}
            assert row["instruction"] in INSTRUCTIONS[row["task"]]
            named.append(row["audio"])
    assert len(set(named)) == len(named)
    found = {path for path in contents(small_dataset) if path.endswith(".wav")}
    assert found == set(named)


def test_audio_is_mono_16_bit_at_16_khz_and_1_to_3_seconds_long(small_dataset: Path) -> None:
    for path in (small_dataset / "audio").rglob("*.wav"):
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (SAMPLING_RATE, 1, "PCM_16")
        assert DURATION_LIMITS[0] <= info.duration <= DURATION_LIMITS[1]
        assert np.abs(soundfile.read(path)[0]).max() > 0.02


def test_the_same_seed_gives_the_same_bytes(small_dataset: Path, tmp_path: Path) -> None:
    again = make_dataset(tmp_path / "again", **SMALL)
    assert contents(again) == contents(small_dataset)


def test_another_seed_gives_other_audio(small_dataset: Path, tmp_path: Path) -> None:
    other = contents(make_dataset(tmp_path / "other", seed=1, **SMALL))
    same = [path for path, digest in contents(small_dataset).items() if other[path] == digest]
    assert same == []


def test_a_finished_folder_is_reused(small_dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in small_dataset.rglob("*")}
    assert make_dataset(small_dataset, **SMALL) == small_dataset
    assert capsys.readouterr().out == f"reusing {small_dataset}\n"
    assert {path: path.stat().st_mtime_ns for path in small_dataset.rglob("*")} == before


def test_a_folder_that_was_changed_or_made_otherwise_is_made_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {"train_per_task": 1, "validation_per_task": 1, "test_per_task": 1}
    folder = make_dataset(tmp_path / "data", **counts)
    original = contents(folder)
    (folder / "audio" / "train" / "sound-0000.wav").write_bytes(b"damaged")
    make_dataset(folder, **counts)
    assert "differs from the requested dataset and is generated again" in capsys.readouterr().out
    assert contents(folder) == original

    make_dataset(folder, **{**counts, "test_per_task": 2})
    assert len(read_rows(folder, "test")) == 2 * len(TASKS)
    make_dataset(folder, **counts)
    assert contents(folder) == original
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    with pytest.raises(FileExistsError, match="is not a generated dataset"):
        make_dataset(tmp_path, **SMALL)
    assert contents(tmp_path).keys() == {"letters.txt"}


KILLED_RUN = """
import os, sys
from offline import dataset_folder
from demo.make_dataset import make_dataset
write, written = dataset_folder.write_file, 0
def dying_write(path, data):
    global written
    written += 1
    if written == int(sys.argv[2]):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f".{path.name}.0123.tmp").write_bytes(data[: len(data) // 2])
        os._exit(9)
    write(path, data)
dataset_folder.write_file = dying_write
make_dataset(sys.argv[1], train_per_task=9, validation_per_task=2, test_per_task=4)
"""


@pytest.mark.parametrize("writes", [5, 69, *(pytest.param(writes, marks=pytest.mark.slow) for writes in (1, 33, 74))])
def test_a_killed_run_is_taken_up_and_gives_the_same_bytes(writes: int, small_dataset: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", KILLED_RUN, str(tmp_path / "data"), str(writes)]
    assert subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=False).returncode == 9
    assert not (tmp_path / "data").exists()
    finished_parts = list(tmp_path.glob(".data.unfinished/*.complete"))
    assert bool(finished_parts) == (writes > 11)
    unchanged = {path: path.stat().st_mtime_ns for path in tmp_path.glob(".data.unfinished/audio/train/keyword-*")}
    folder = make_dataset(tmp_path / "data", **SMALL)
    assert contents(folder) == contents(small_dataset)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    if finished_parts:
        kept = {path.name: path.stat().st_mtime_ns for path in (folder / "audio" / "train").glob("keyword-*")}
        assert kept == {path.name: time for path, time in unchanged.items()}


def test_an_unfinished_run_with_other_arguments_is_not_taken_up(small_dataset: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / ".data.unfinished"
    unfinished.mkdir()
    (unfinished / "request.json").write_text('{"seed": 5}')
    (unfinished / "train-keyword-0.complete").write_text("")
    assert contents(make_dataset(tmp_path / "data", **SMALL)) == contents(small_dataset)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("count", [1, 15, 120])
def test_classes_and_wordings_are_balanced(task: str, count: int) -> None:
    clips = plan_clips(task, "train", count)
    classes = {"keyword": 4, "speaker": 2, "emotion": len(EMOTIONS), "sound": 4}[task]
    for frequencies, kinds in (
        (Counter(clip.answer for clip in clips), classes),
        (Counter(clip.instruction for clip in clips), len(INSTRUCTIONS[task])),
    ):
        assert sum(frequencies.values()) == count
        assert len(frequencies) == min(kinds, count)
        assert max(frequencies.values()) - min(frequencies.values()) <= 1


def test_no_voice_and_no_sentence_occurs_in_two_splits() -> None:
    voices, texts = {}, {}
    for split in SPLITS:
        clips = [clip for task in ("keyword", "speaker", "emotion") for clip in plan_clips(task, split, 300)]
        voices[split] = {clip.speech["variant"] for clip in clips}
        texts[split] = {clip.text.replace(clip.answer, "{}") for clip in clips}
        assert len(voices[split]) >= 2
    for first, second in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert voices[first].isdisjoint(voices[second])
        assert texts[first].isdisjoint(texts[second])
    module = make_dataset_module
    for fragments in (module.CARRIERS, module.SUBJECTS, module.PREDICATES):
        listed = [fragment for split in SPLITS for fragment in fragments[split]]
        assert len(set(listed)) == len(listed)


def test_only_the_voices_of_the_training_split_are_changed() -> None:
    for split in SPLITS:
        for clip in plan_clips("emotion", split, 100):
            changes = {name for name in clip.speech if name.startswith("voice_")}
            assert changes == ({"voice_pitch", "voice_formants"} if split == "train" else set())
    for clip in plan_clips("speaker", "train", 200):
        for name, (low, high) in make_dataset_module.VOICE_CHANGES[clip.answer].items():
            assert low <= clip.speech[name] <= high
    assert len({clip.speech["voice_pitch"] for clip in plan_clips("speaker", "train", 200)}) > 20


def test_no_two_sounds_are_alike() -> None:
    seeds = [clip.seed for split in SPLITS for clip in plan_clips("sound", split, 300)]
    assert len(set(seeds)) == len(seeds)


def test_the_answer_to_the_speaker_task_is_the_voices_gender() -> None:
    for split in SPLITS:
        for clip in plan_clips("speaker", split, 40):
            assert clip.speech["variant"] in make_dataset_module.VOICES[split][clip.answer]


def test_the_slowest_speech_fits() -> None:
    module, synthesizer = make_dataset_module, EspeakSynthesizer()
    slowest = {name: low for name, (low, _) in EMOTIONS["sad"].items()}
    for split in SPLITS:
        longest = [max(parts[split], key=len) for parts in (module.SUBJECTS, module.PREDICATES)]
        carrier = max(module.CARRIERS[split], key=len).format("elephant")
        for variant in [*module.VOICES[split]["woman"], *module.VOICES[split]["man"]]:
            for text, speech in ((f"{' '.join(longest)}.", slowest), (carrier, {"rate": module.NEUTRAL["rate"][0]})):
                speech = {"voice": "en", "variant": variant, **speech}
                clip = module.Clip("", "", "", "emotion", text, speech, seed=0)
                assert render_clip(clip, synthesizer).size <= DURATION_LIMITS[1] * SAMPLING_RATE


def test_speech_that_does_not_fit_is_an_error() -> None:
    speech = {"voice": "en-us", "variant": "f3", "rate": 80}
    clip = make_dataset_module.Clip("", "", "", "speaker", "one two three four five six seven eight", speech, seed=0)
    with pytest.raises(RuntimeError, match=r"takes \d\.\d s, more than 3\.0 s\. Shorten the text or raise the rate"):
        render_clip(clip, EspeakSynthesizer())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("smell", "train", 1), "no task 'smell', expected one of keyword, speaker, emotion, sound"),
        (("sound", "dev", 1), "no split 'dev', expected one of train, validation, test"),
        (("sound", "train", 0), "count=0 and seed=0: expected a count of 1 or more"),
        (("sound", "train", 1, -1), "seed=-1: expected a count of 1 or more and a seed of 0 or more"),
    ],
)
def test_impossible_plans_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_clips(*arguments)


@pytest.mark.parametrize(("module", "extra"), [("soxr", "audio"), ("soundfile", "audio"), ("espeakng_loader", "demo")])
def test_a_missing_package_is_named_with_the_extra_to_install(
    module: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf'pip install "peft-listen\[{extra}\]"'):
        make_dataset(tmp_path / "data", **SMALL)


def test_the_command_makes_a_data_set_and_names_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = "--seed 3 --train-per-task 2 --validation-per-task 1 --test-per-task 1".split()
    monkeypatch.setattr(sys, "argv", ["make_dataset", str(tmp_path / "data"), *arguments])
    make_dataset_module.main()
    assert capsys.readouterr().out == f"{tmp_path / 'data'}\n"
    assert len(read_rows(tmp_path / "data", "train")) == 2 * len(TASKS)
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["seed"] == 3
