"""Lines that a JSON parser, a tokenizer or a console cannot process are reported with their numbers, like all others."""

import base64
import functools
import io
import json
import os
import re
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile

from peft_listen import BeatsModel
from peft_listen.audio import AudioLimits, LimitError, load_audio
from peft_listen.data import check_examples, read_examples, schema
from peft_listen.models.beats.convert_beats_original_checkpoint import to_original_checkpoint
from peft_listen_cli import main
from tests.device_nodes import make_null_device


def line(**fields):
    return json.dumps({"audio": None, "instruction": "What is it?", "answer": "a tone", "task": "sounds"} | fields)


def with_field(value):
    """A valid line with one more field, given as JSON."""
    return line()[:-1] + f', "more": {value}}}'


LONG = 2_000_000

BAD_LINES = {
    "half a pair in the instruction": (line(instruction="a \ud83d"), r"`instruction` contains half a surrogate pair"),
    "half a pair in the answer": (line(answer="\udc00"), r"`answer` contains half .* \('\\udc00' at character 1\)"),
    "half a pair in the task": (line(task="x\udfff"), r"`task` contains half .* at character 2\)"),
    "half a pair in the audio": (line(audio="\ud83d.wav"), r"`audio` contains half a surrogate pair"),
    "a pair in the wrong order": (line(answer="\ude00\ud83d"), r"`answer` contains half"),
    "null in the audio": (line(audio="a\0.wav"), r"`audio` contains a null character"),
    "deep lists": (with_field("[" * 100_000 + "]" * 100_000), "nested too deeply"),
    "deep objects": (with_field('{"a":' * 100_000 + "1" + "}" * 100_000), "nested too deeply"),
    "deep and unfinished": ("[" * LONG, "nested too deeply"),
    "a huge integer": (with_field("9" * 5_000), r"not readable \(.*digits"),
    "a huge negative integer": (with_field("-" + "1" * LONG), r"not readable \(.*digits"),
    "a huge integer as answer": (with_field("1").replace('"a tone"', "7" * 6_000), r"not readable \(.*digits"),
    "a long instruction": (line(instruction="x" * LONG), r"`instruction` has 2000000 characters; expected at most"),
    "a long answer": (line(answer="你" * LONG), r"`answer` has 2000000 characters"),
    "a long path": (line(audio="x" * LONG), r"`audio` has 2000000 characters"),
    "a long URL": (line(audio="https://" + "x" * LONG), r"`audio` has 2000008 characters"),
    "an answer like a data URI": (line(answer="data:" + "x" * LONG), r"`answer` has 2000005 characters"),
    "a long wrong type": (line(answer=["x" * LONG]), r"`answer` must be a string, got \['x"),
    "a long wrong audio": (
        line(audio={"x" * LONG: "y" * LONG}),
        r"`audio` must be a path, a URL, a list of these, or null",
    ),
    "long field names": (json.dumps({"x" * LONG: 1}), "the fields .* are missing"),
    "many field names": (json.dumps(dict.fromkeys(map(str, range(LONG // 10)))), "the fields .* are missing"),
    "not JSON": ("x" * LONG, "not valid JSON"),
    "an unfinished text": ('{"audio": "' + "x" * LONG, "not valid JSON"),
}


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_line_is_reported_with_its_number_and_the_check_goes_on(tmp_path, case):
    bad, message = BAD_LINES[case]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([line(), bad, line(), line(task="")]))
    first, second = check_examples(path)
    assert (first.line, second.line) == (2, 4)
    assert re.search(message, first.message)
    assert len(first.message) < 1_000
    assert second.message == "`task` is empty."
    with pytest.raises(ValueError, match=rf"data\.jsonl, line 2: .*{message}"):
        read_examples(path)


@pytest.mark.parametrize(
    "good",
    [
        line(instruction="\U0001f600"),
        line(answer="𝄞 नमस्ते \u0000"),
        with_field("[" * 50 + "]" * 50),
        with_field("9" * 4_000),
        with_field('"' + "x" * LONG + '"'),
        line(answer="x" * 400_000),
    ],
)
def test_unusual_lines_are_valid(tmp_path, good):
    path = tmp_path / "data.jsonl"
    path.write_text(good)
    assert check_examples(path) == []
    assert len(read_examples(path)) == 1


@pytest.mark.parametrize("end", ["\n", ""])
def test_a_line_without_end_is_not_read_into_memory(tmp_path, monkeypatch, end):
    monkeypatch.setattr(schema, "MAX_LINE_BYTES", 1_000)
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join([line(), with_field('"' + "x" * 5_000_000 + '"'), line(task="")]) + end)
    first, second = check_examples(path)
    assert str(first) == (
        "line 2: longer than 1000 bytes. Every line must be one JSON object; end it with a line break."
    )
    assert second.line == 3


@pytest.mark.parametrize("read", [read_examples, check_examples])
def test_a_device_is_not_a_data_file(tmp_path, read):
    device = make_null_device(tmp_path / "device")
    with pytest.raises(OSError, match=f"{device} is a device; expected a data file"):
        read(device)


def test_a_pipe_may_be_a_data_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_text(line()))
    writer.start()
    assert len(read_examples(tmp_path / "pipe")) == 1
    writer.join()


@pytest.fixture
def server(tmp_path):
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(np.arange(4_000) / 10), 16_000)

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.parametrize("scheme", ["http", "HTTP", "Http", "hTTP"])
def test_the_case_of_the_scheme_of_a_url_does_not_matter(server, tmp_path, scheme):
    path = tmp_path / "data.jsonl"
    url = f"{scheme}://{server}/tone.wav"
    path.write_text(line(audio=url))
    assert read_examples(path)[0]["audio"] == url
    assert check_examples(path) == []
    path.write_text(line(audio=f"{scheme}S://example.org/a.wav"))
    assert read_examples(path)[0]["audio"] == f"{scheme}S://example.org/a.wav"


def test_a_file_name_that_is_not_utf8_is_read(tmp_path):
    tone = os.fsencode(tmp_path) + b"/\xff.wav"
    with open(tone, "wb") as file:
        soundfile.write(file, 0.3 * np.sin(np.arange(4_000) / 10), 16_000, format="WAV")
    (tmp_path / "data.jsonl").write_text(line(audio="\udcff.wav"))
    assert check_examples(tmp_path / "data.jsonl") == []


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "euc_jp", "utf-8"])
def test_no_console_loses_output(tmp_path, monkeypatch, encoding):
    path = tmp_path / "größe.jsonl"
    path.write_text("\n".join([line(audio="नमस्ते.wav"), line(audio="🎵.wav"), line(audio="\udcff.wav"), line(task="")]))
    console = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(console, encoding=encoding, errors="strict"))
    assert main(["data", "check", str(path)]) == 1
    sys.stdout.flush()
    lines = console.getvalue().decode(encoding).splitlines()
    assert [number for number in (1, 2, 3, 4) if f"line {number}: " in lines[number - 1]] == [1, 2, 3, 4]
    assert lines[4].endswith(": 4 problems")
    note = "🎵" if encoding == "utf-8" else r"\U0001f3b5"
    assert f"{note}.wav: no such audio file" in lines[1]
    assert r"\udcff.wav: no such audio file" in lines[2]


def test_errors_with_characters_that_the_console_lacks_are_shown(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "\udcff.jsonl")]) == 2
    assert r"\udcff.jsonl" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["page.html", "selections.safetensors"])
@pytest.mark.parametrize("kind", ["device", "link", "folder", "missing folder"])
def test_the_outputs_of_a_report_are_checked_before_the_model_is_loaded(tmp_path, capsys, name, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    if kind == "device":
        make_null_device(tmp_path / "device")
    paths = {"device": "device", "link": "link", "folder": "folder", "missing folder": "none/page.html"}
    bad, good = str(tmp_path / paths[kind]), str(tmp_path / name)
    option, other = ("-o", "--save-records") if name == "page.html" else ("--save-records", "-o")
    (tmp_path / "data.jsonl").write_text(line())
    assert main(["report", "no/model", str(tmp_path / "data.jsonl"), option, bad, other, good]) == 2
    assert f"{bad} cannot be written: " in capsys.readouterr().err
    assert not Path(good).exists()


@pytest.mark.parametrize("kind", ["device", "link to a file", "link to a folder"])
def test_conversions_do_not_replace_devices_or_follow_links(tmp_path, capsys, beats_config, kind):
    model = BeatsModel(beats_config())
    to_original_checkpoint(model, tmp_path / "checkpoint.pt")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    output = tmp_path / "output"
    if kind == "device":
        make_null_device(output)
    else:
        output.symlink_to(tmp_path / kind.rpartition(" ")[2])
    before = output.lstat()
    with pytest.raises(OSError, match=f"{output} cannot be written: it is a"):
        to_original_checkpoint(model, output)
    assert main(["convert-beats", str(tmp_path / "checkpoint.pt"), str(output)]) == 2
    assert re.search("is a symbolic link|is not an empty folder", capsys.readouterr().err)
    assert (output.lstat().st_ino, output.lstat().st_mode) == (before.st_ino, before.st_mode)
    assert list((tmp_path / "folder").iterdir()) == []
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("scheme", ["data:", "DATA:"])
def test_a_clip_in_a_data_uri_may_be_longer_than_a_text(tmp_path, scheme):
    content = io.BytesIO()
    soundfile.write(content, 0.3 * np.sin(np.arange(20 * 16_000) / 10), 16_000, format="WAV")
    uri = scheme + "audio/wav;base64," + base64.b64encode(content.getvalue()).decode()
    assert len(uri) > schema.MAX_TEXT_CHARACTERS
    (tmp_path / "data.jsonl").write_text(line(audio=uri) + "\n")
    (example,) = read_examples(tmp_path / "data.jsonl")
    assert example["audio"] == uri
    assert load_audio(example["audio"]).shape == (20 * 16_000,)
    with pytest.raises(LimitError, match="larger than the limit of 100000 bytes"):
        load_audio(example["audio"], limits=AudioLimits(max_bytes=100_000))
