import json
import os
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from peft_listen import serving
from peft_listen.analysis import record_dataset
from peft_listen.pipelines.loading import load_pipeline
from peft_listen_cli import main
from tests.served import running_command


@pytest.fixture(scope="module")
def adapter(make_adapted, tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "own"
    make_adapted("listen").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data(examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples))
    return str(path)


@pytest.fixture(scope="module")
def records(adapter, examples, tmp_path_factory):
    path = tmp_path_factory.mktemp("records") / "own.safetensors"
    record_dataset(load_pipeline(adapter), examples).save(path)
    return str(path)


def config_of(url):
    with urllib.request.urlopen(f"{url}/config", timeout=30) as response:
        return json.load(response)


def test_the_page_is_opened_at_the_printed_address(adapter, data, records, capsys):
    pytest.importorskip("gradio")
    arguments = ["demo", adapter, "--data", data, "--records", records, "--max-audio-seconds", "7"]
    with running_command(arguments) as url:
        assert url.startswith("http://127.0.0.1:")
        assert capsys.readouterr().out == f"Open {url} in a browser. Ctrl-C stops the page.\n"
        components = config_of(url)["components"]
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(urllib.request.Request(url, headers={"Host": "another.example"}), timeout=30)
    labels = [component["props"].get("label") for component in components]
    assert "Clip, up to 7 s" in labels
    buttons = [component["props"]["value"] for component in components if component["type"] == "button"]
    assert buttons == ["asr", "sounds", "Ask", "Stop"]
    captured = capsys.readouterr()
    assert captured.out == "" and "Traceback" not in captured.err


def test_the_page_gets_the_words_near_the_prompts(adapter, monkeypatch):
    page = pytest.importorskip("peft_listen.page")
    found = {}

    class Recorded(page.Answering):
        def __init__(self, models, settings, shares, words):
            super().__init__(models, settings, shares, words)
            found.update(words)

    monkeypatch.setattr(page, "Answering", Recorded)
    with running_command(["demo", f"one={adapter}"]):
        assert list(found) == ["one"] and all(found["one"].prompts.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./no-model"], "no file or folder './no-model'"),
        (["a=./one", "a=./two"], "would both be served as 'a'"),
        (["m", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
        (
            ["m", "--host", "a/b"],
            "`--host` must be an address or a name of this machine, such as 127.0.0.1, got 'a/b'",
        ),
        (["m", "--allowed-host", "http://a.example"], "(`--allowed-host`) must be a list of names"),
        (["m", "--data", "missing.jsonl"], "missing.jsonl"),
        (["m", "--records", "other=x"], "--records other=x: expected NAME=FILE with one of the names m"),
        (["m", "n", "--records", "file"], "--records file: expected NAME=FILE with one of the names m, n"),
        (["m", "--records", "m="], "--records m=: expected NAME=FILE"),
    ],
)
def test_bad_input_is_explained(arguments, message, capsys):
    pytest.importorskip("gradio")
    assert main(["demo", *arguments, "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_the_selections_of_another_adapter_are_refused(adapter, records, make_adapted, tmp_path, capsys):
    pytest.importorskip("gradio")
    model = make_adapted("listen")
    for name, parameter in model.named_parameters():
        if "keys" in name:
            parameter.data.neg_()
    model.save_pretrained(tmp_path / "other")
    assert main(["demo", str(tmp_path / "other"), "--records", records, "--port", "0"]) == 2
    assert "the selections of another adapter than 'other'" in capsys.readouterr().err


def test_an_address_that_is_in_use_is_refused_before_the_model_is_loaded(capsys):
    pytest.importorskip("gradio")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["demo", "org/no-such-model", "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}" in error and "Traceback" not in error


@pytest.mark.parametrize("option", ["--max-new-tokens", "--max-audio-seconds", "--max-upload-mb", "--timeout"])
@pytest.mark.parametrize("value", ["0", "-1", "many", "nan"])
def test_limits_must_be_positive(option, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "m", option, value])
    assert exit_info.value.code == 2 and option in capsys.readouterr().err


def test_what_is_not_installed_is_named(adapter, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("peft_listen.page")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["demo", adapter]) == 2
    assert 'pip install "peft-listen[page]"' in capsys.readouterr().err


def test_no_folder_is_left(adapter, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with running_command(["demo", adapter]):
        assert [path.name.startswith("peft-listen-") for path in tmp_path.iterdir()].count(True) == 1
    assert not list(Path(tmp_path).glob("peft-listen-*"))


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder of temporary folders."""
    pytest.importorskip("gradio")
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("handlers of signals run in the main thread")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_no_folder_is_left_if_a_signal_ends_the_page(number, adapter, temporary, monkeypatch):
    before, make, found = signal.getsignal(number), serving.AppServer.__init__, []

    def stop():
        found.extend(temporary.glob("peft-listen-*"))
        os.kill(os.getpid(), number)

    monkeypatch.setattr(
        serving.AppServer, "__init__", lambda self, app, sock, _, **settings: make(self, app, sock, stop, **settings)
    )
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", adapter, "--port", "0"])
    assert exit_info.value.code == 128 + number
    assert len(found) == 1
    assert not list(temporary.glob("peft-listen-*")) and signal.getsignal(number) is before


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_no_folder_is_left_if_a_signal_ends_the_loading(temporary, monkeypatch):
    monkeypatch.setattr(serving, "load_models", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(SystemExit) as exit_info:
        main(["demo", "org/no-such-model", "--port", "0"])
    assert exit_info.value.code == 143 and not list(temporary.glob("peft-listen-*"))
