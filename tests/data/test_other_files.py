"""Files that are not data files, and lines whose text or field names are wrong, give one clear error each."""

import gzip
import io
import json
import os
import re
import tarfile

import numpy as np
import pytest
import soundfile

from peft_listen.data import check_examples, read_examples
from peft_listen_cli import main


GOOD = {"audio": None, "instruction": "What is it?", "answer": "a tone", "task": "sounds"}


def sound(container):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 40_000)
    soundfile.write(buffer, noise, 16_000, format=container)
    return buffer.getvalue()


def archive():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        content = np.random.default_rng(0).bytes(10_000)
        info = tarfile.TarInfo("clip.wav")
        info.size = len(content)
        file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


ROWS = [GOOD] * 30
OTHER_FILES = {
    "WAV": lambda: sound("WAV"),
    "FLAC": lambda: sound("FLAC"),
    "MP3": lambda: sound("MP3"),
    "OGG": lambda: sound("OGG"),
    "an archive": archive,
    "compressed lines": lambda: gzip.compress(np.random.default_rng(0).bytes(20_000)),
    "UTF-16": lambda: "".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16"),
    "one line of UTF-16": lambda: json.dumps(GOOD).encode("utf-16"),
    "an indented list": lambda: json.dumps(ROWS, indent=2).encode(),
    "an indented object": lambda: json.dumps(GOOD, indent=2).encode(),
    "CSV": lambda: b"audio,instruction,answer,task\n" + b"a.wav,What is it?,a tone,sounds\n" * 500,
    "CSV of two lines": lambda: b"audio,instruction,answer,task\na.wav,What is it?,a tone,sounds\n",
    "YAML": lambda: b"- audio: a.wav\n  instruction: What?\n  answer: a tone\n  task: sounds\n" * 100,
    "notes": lambda: b"These are notes.\n\nThey have no data.\n" * 100,
    "lists": lambda: b'["a.wav", "What?", "a tone", "sounds"]\n' * 100,
    "zeros": lambda: bytes(100_000),
}


@pytest.mark.parametrize("case", OTHER_FILES)
def test_another_file_is_one_error_that_names_it(tmp_path, capsys, case):
    path = tmp_path / "data.x"
    path.write_bytes(OTHER_FILES[case]())
    assert main(["data", "check", str(path)]) == 2
    output = capsys.readouterr()
    message = (
        rf"{path} is not a (text file \(it contains null bytes\)|file of JSON lines): none of its first \d+ lines "
    )
    assert re.search("peft-listen: error: " + message, output.err) and output.out == ""
    assert "Traceback" not in output.err and len(output.err.splitlines()[-1]) < 1_000
    with pytest.raises(ValueError, match=message):
        check_examples(path)
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_examples(path)


def test_bad_lines_before_a_good_one_are_reported_one_by_one(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("not JSON\n[1]\n\n" + json.dumps(GOOD) + "\n" + "not JSON\n" * 20)
    assert [problem.line for problem in check_examples(path)] == [1, 2, *range(5, 25)]


MISSING = {
    "a missing file": ("none.jsonl", FileNotFoundError, "none.jsonl: no such data file"),
    "a missing folder": ("none/data.jsonl", FileNotFoundError, "data.jsonl: no such data file"),
    "a folder": ("folder", IsADirectoryError, "folder is a folder; expected a data file"),
    "a file as a folder": (
        "file/data.jsonl",
        NotADirectoryError,
        r"data.jsonl: the data file cannot be opened \(Not a dir",
    ),
    "a link to nothing": ("link", FileNotFoundError, "link: no such data file"),
    "a link to itself": ("circle", OSError, r"circle: the data file cannot be opened \(Too many levels"),
    "a name that is too long": ("x" * 300, OSError, r"the data file cannot be opened \(File name too long\)"),
    "a null character": ("a\0b", FileNotFoundError, r"is not a path \(embedded null byte\)"),
    "a socket": ("socket", OSError, r"socket: the data file cannot be opened"),
}


@pytest.mark.parametrize("case", MISSING)
def test_a_file_that_cannot_be_opened_is_named_without_numbers_of_errors(tmp_path, capsys, monkeypatch, case):
    import socket

    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nothing")
    (tmp_path / "circle").symlink_to("circle")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        name, kind, message = MISSING[case]
        for function in (read_examples, check_examples):
            with pytest.raises(kind, match=message):
                function(name)
        assert main(["data", "check", name]) == 2
    assert "Errno" not in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
def test_a_file_that_may_not_be_read(tmp_path):
    path = tmp_path / "data.jsonl"
    path.touch(mode=0)
    with pytest.raises(PermissionError, match=r"cannot be opened \(Permission denied\)"):
        read_examples(path)


def repeated(*pairs):
    return json.dumps(GOOD)[:-1] + "".join(f", {json.dumps(name)}: {json.dumps(value)}" for name, value in pairs) + "}"


@pytest.mark.parametrize(
    ("line", "names"),
    [
        (repeated(("answer", "a dog")), r"\['answer'\]"),
        (repeated(("answer", "a tone")), r"\['answer'\]"),
        (repeated(("audio", "a.wav")), r"\['audio'\]"),
        (repeated(("task", "x"), ("instruction", "y"), ("task", "z")), r"\['instruction', 'task'\]"),
        (repeated(("more", 1), ("more", 2)), r"\['more'\]"),
        (repeated(("answer", {"answer": 1})), r"\['answer'\]"),
    ],
)
def test_a_field_that_occurs_twice_is_reported(tmp_path, line, names):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + line)
    (problem,) = check_examples(path)
    assert problem.line == 2 and re.match(rf"the fields {names} occur more than once", problem.message)
    with pytest.raises(ValueError, match=rf"line 2: the fields {names} occur more than once"):
        read_examples(path)


def test_equal_names_in_different_objects_are_valid(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD)[:-1] + ', "more": [{"answer": 1}, {"answer": 2, "more": {"a": 1, "a": 2}}]}')
    assert check_examples(path) == [] and len(read_examples(path)) == 1


@pytest.mark.parametrize("field", ["instruction", "answer"])
@pytest.mark.parametrize("text", ["<|audio|>", "What is <|audio|>?", "a<|audio|><|audio|>"])
def test_the_audio_token_in_a_text_is_reported(tmp_path, capsys, field, text):
    path = tmp_path / "data.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(GOOD | {field: text}))
    (problem,) = check_examples(path)
    assert problem.line == 2 and f"`{field}` contains the audio token <|audio|>" in problem.message
    assert check_examples(path, audio_token="<sound>") == []
    path.write_text(json.dumps(GOOD | {field: text.replace("<|audio|>", "<sound>")}))
    assert check_examples(path) == []
    assert main(["data", "check", str(path), "--audio-token", "<sound>"]) == 1
    assert f"line 1: `{field}` contains the audio token <sound>" in capsys.readouterr().out


def test_the_audio_token_elsewhere_is_valid(tmp_path):
    (tmp_path / "data.jsonl").write_text(json.dumps(GOOD | {"task": "<|audio|>", "more": "<|audio|>"}))
    assert check_examples(tmp_path / "data.jsonl") == []
