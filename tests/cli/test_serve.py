import os
import signal
import socket
import subprocess
import sys
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import openai
import pytest
from transformers import pipeline

import peft_listen_cli
from peft_listen_cli import main
from tests.served import running_command


def ask(url, **settings):
    messages = [{"role": "user", "content": "What is it?"}]
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        return client.chat.completions.create(messages=messages, **settings).choices[0].message.content


def test_a_model_is_served_by_the_name_of_its_folder(composite_folder, capsys):
    arguments = ["serve", str(composite_folder), "--max-new-tokens", "5", "--batch-size", "2"]
    with running_command(arguments) as url:
        assert capsys.readouterr().out == f"Serving {composite_folder.name} at {url}\n"
        answer = ask(url, model=composite_folder.name)
    (output,) = pipeline("audio-text-to-text", model=str(composite_folder))(text="What is it?", max_new_tokens=5)
    assert answer == output["generated_text"]
    captured = capsys.readouterr()
    assert captured.out == "" and "POST /v1/chat/completions" in captured.err


def test_the_options_are_limits_of_the_server(composite_folder, monkeypatch):
    monkeypatch.setenv("PEFT_LISTEN_API_KEY", "secret")
    limits = ["--max-request-mb", "0.001", "--max-audio-seconds", "3", "--timeout", "20", "--max-requests", "3"]
    limits += ["--max-connections", "9"]
    with running_command(["serve", f"other={composite_folder}", *limits]) as url:
        with pytest.raises(openai.AuthenticationError):
            ask(url, model="other")
        with openai.OpenAI(base_url=url, api_key="secret", max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["other"]
            messages = [{"role": "user", "content": "a" * 2000}]
            with pytest.raises(openai.APIStatusError, match="limit of 1048 bytes"):
                client.chat.completions.create(model="other", messages=messages)


def test_names_of_the_server_can_be_given(composite_folder, monkeypatch):
    monkeypatch.delenv("PEFT_LISTEN_API_KEY", raising=False)
    names = ["--host", "localhost", "--allowed-host", "a.example", "--allowed-host", "b.example"]
    with running_command(["serve", str(composite_folder), *names]) as url:
        statuses = {}
        for name in ("localhost", "a.example", "b.example", "c.example"):
            address = urlsplit(url)
            connection = HTTPConnection(address.hostname, address.port, timeout=60)
            connection.request("GET", "/health", headers={"Host": f"{name}:{address.port}"})
            statuses[name] = connection.getresponse().status
            connection.close()
    assert statuses == {"localhost": 200, "a.example": 200, "b.example": 200, "c.example": 403}


def test_an_address_that_is_in_use_is_refused_before_the_model_is_loaded(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "org/no-such-model", "--port", port]) == 2
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1, port {port}" in error and "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["./no-model"], "no file or folder './no-model'"),
        (["a=./one", "a=./two"], "would both be served as 'a'"),
        (["=x"], "'=x' is not of the form NAME=MODEL"),
        (["m", "--host", "no.such.host.invalid"], "cannot listen on no.such.host.invalid"),
    ],
)
def test_bad_input_is_explained(arguments, message, capsys):
    assert main(["serve", *arguments, "--port", "0"]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_an_empty_key_is_refused(monkeypatch, capsys):
    monkeypatch.setenv("PEFT_LISTEN_API_KEY", " ")
    assert main(["serve", "m"]) == 2
    assert "`api_key` is empty" in capsys.readouterr().err


@pytest.mark.parametrize(
    "option",
    [
        "--max-new-tokens",
        "--batch-size",
        "--max-requests",
        "--max-connections",
        "--timeout",
        "--max-request-mb",
        "--max-clips",
        "--max-text-characters",
    ],
)
@pytest.mark.parametrize("value", ["0", "-1", "many", "nan"])
def test_limits_must_be_positive(option, value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["serve", "m", option, value])
    assert exit_info.value.code == 2 and option in capsys.readouterr().err


@pytest.mark.parametrize("value", ["-1", "65536", "http"])
def test_a_port_must_exist(value, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["serve", "m", "--port", value])
    assert exit_info.value.code == 2 and "--port" in capsys.readouterr().err


def test_what_is_not_installed_is_named(composite_folder, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("peft_listen.serving")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(composite_folder)]) == 2
    assert 'pip install "peft-listen[serve]"' in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_server(composite_folder, number):
    source = str(Path(peft_listen_cli.__file__).parent.parent)
    command = [sys.executable, "-m", "peft_listen_cli", "serve", str(composite_folder), "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": source}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().split()[-1]
        assert ask(url, model=composite_folder.name, max_tokens=2) is not None
        process.send_signal(number)
        error = process.stderr.read()
        assert process.wait(30) == (0 if number == signal.SIGINT else -number)
    assert "Traceback" not in error
