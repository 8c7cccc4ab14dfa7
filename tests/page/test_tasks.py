"""The tasks of the buttons, and the clips to pick, from a data file."""

import json
from pathlib import Path

import pytest

from peft_listen.page import read_tasks
from tests.small_models import write_wav


def write(path: Path, rows) -> Path:
    row = {"audio": None, "instruction": "?", "answer": "a", "task": "t"}
    path.write_text("".join(json.dumps({**row, **each}) + "\n" for each in rows))
    return path


def test_the_most_frequent_instruction_of_each_task(tmp_path):
    rows = [{"task": "b", "instruction": text} for text in ("one", "two", "two")] + [
        {"task": "a", "instruction": "three"}
    ]
    tasks = read_tasks(write(tmp_path / "data.jsonl", rows))
    assert tasks.instructions == {"b": "two", "a": "three"} and tasks.clips == []
    assert list(tasks.instructions) == ["b", "a"]


def test_the_first_five_clips_of_each_task_that_are_files(tmp_path):
    for number in range(7):
        write_wav(tmp_path / f"{number}.wav", 0.1)
    rows = [{"audio": f"{number}.wav", "answer": str(number)} for number in range(7)]
    rows = [
        {"audio": "https://example.org/a.wav"},
        {"audio": "missing.wav"},
        {"audio": ["0.wav", "1.wav"]},
        *rows,
        rows[0],
    ]
    tasks = read_tasks(write(tmp_path / "data.jsonl", rows))
    assert [clip.name for clip in tasks.clips] == [f"t · {number}.wav" for number in range(5)]
    assert [clip.path for clip in tasks.clips] == [str(tmp_path / f"{number}.wav") for number in range(5)]
    assert [clip.answer for clip in tasks.clips] == list("01234")


def test_clips_with_the_same_name_are_told_apart_by_their_folders(tmp_path):
    paths = ["a/1.wav", "b/1.wav", "b/2.wav", "x/a/1.wav", "1.wav"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        write_wav(tmp_path / path, 0.1)
    rows = [{"audio": path} for path in [*paths, "b/../a/1.wav"]]
    tasks = read_tasks(write(tmp_path / "data.jsonl", rows))
    assert [clip.path for clip in tasks.clips] == [str(tmp_path / path) for path in paths]
    folder = tmp_path.name
    names = [f"{folder}/a/1.wav", "b/1.wav", "2.wav", "x/a/1.wav", f"{folder}/1.wav"]
    assert [clip.name for clip in tasks.clips] == [f"t · {name}" for name in names]


def test_at_most_twelve_tasks(tmp_path):
    tasks = read_tasks(write(tmp_path / "data.jsonl", [{"task": f"task-{number}"} for number in range(20)]))
    assert len(tasks.instructions) == 12


def test_other_files_are_refused(tmp_path):
    (tmp_path / "data.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="line 1"):
        read_tasks(tmp_path / "data.jsonl")
    with pytest.raises(OSError):
        read_tasks(tmp_path / "missing.jsonl")
