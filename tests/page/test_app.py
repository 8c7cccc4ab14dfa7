"""The application over HTTP, as a browser uses it: the page itself, uploads, a question, and what it refuses."""

from __future__ import annotations

import json
import re
import threading
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from peft_listen.page import Clip, Tasks, create_page
from peft_listen.page.app import without_other_servers
from peft_listen.serving import AppServer, QuietProtocol, address_of, bind
from tests.served import running_server
from tests.small_models import write_wav


# Components whose values an event of "Ask" takes, in their order.
INPUTS = ["model", "clip", "instruction", "k", "comparison", "other k", "other model"]


@contextmanager
def running(app: Any) -> Iterator[str]:
    """The address of an application that runs in a thread."""
    sock, started = bind("127.0.0.1", 0), threading.Event()
    url = address_of(sock)
    server = AppServer(app, sock, started.set, protocol=QuietProtocol)
    with running_server(server, started):
        yield url


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the machine, whose `picked.wav` the page offers."""
    folder = tmp_path_factory.mktemp("machine")
    for name in ("picked.wav", "secret.wav"):
        write_wav(folder / name)
    return folder


@pytest.fixture(scope="module")
def url(answering: Any, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    clip = Clip("sound · picked.wav", str(folder / "picked.wav"), "What is it?", "a tone")
    tasks = Tasks({"sound": "What is it?", "<b>": "Is it bold?"}, [clip])
    with running(create_page(answering, str(tmp_path_factory.mktemp("uploads")), tasks)) as url:
        yield url


def get(url: str, data: bytes | None = None, **headers: str) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def upload(url: str, name: str, content: bytes) -> tuple[int, Any]:
    boundary = uuid.uuid4().hex
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n'
    body = f"{head}Content-Type: audio/wav\r\n\r\n".encode() + content + f"\r\n--{boundary}--\r\n".encode()
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    status, answer = get(f"{url}/gradio_api/upload", body, **headers)
    return status, json.loads(answer) if status == 200 else answer.decode()


def ask(url: str, **values: Any) -> list[dict[str, Any]]:
    """The messages of gradio's queue for a click on "Ask"."""
    values = {"model": "dogs", "instruction": "What is said?", "k": 4, "comparison": "nothing", "other k": 2, **values}
    config = json.loads(get(f"{url}/config")[1])
    (event,) = (each for each in config["dependencies"] if len(each["inputs"]) == len(INPUTS))
    session = uuid.uuid4().hex
    data = [values.get(name) for name in INPUTS]
    body = json.dumps({"data": data, "fn_index": event["id"], "session_hash": session}).encode()
    status, answer = get(f"{url}/gradio_api/queue/join", body, **{"Content-Type": "application/json"})
    assert status == 200, answer
    _, stream = get(f"{url}/gradio_api/queue/data?session_hash={session}")
    return [
        json.loads(line.removeprefix("data: ")) for line in stream.decode().splitlines() if line.startswith("data: ")
    ]


def outputs(messages: list[dict[str, Any]]) -> list[str]:
    """The last values of message, heading, answer and selection, and the same of the second answer."""
    last = next(each for each in messages if each["msg"] == "process_completed")
    assert last["success"], last
    return list(last["output"]["data"])


def as_clip(path: str) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def test_requests_are_not_logged(url: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert get(url)[0] == 200
    assert "GET" not in capfd.readouterr().err


def test_the_page_names_no_other_server(url: str) -> None:
    status, content = get(url)
    page = content.decode()
    assert status == 200 and "peft-listen: dogs, cats" in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?(?:https?:)?//[^>]*>", page)
    assert "fonts.googleapis.com" not in page + get(f"{url}/theme.css")[1].decode()


def test_fonts_and_scripts_of_other_servers_are_left_out() -> None:
    kept = (
        b'<link rel="stylesheet" href="./a.css"><script src="assets/a.js"></script><a href="https://example.org">x</a>'
    )
    elsewhere = [
        b'<link\n\trel="preconnect"\n\thref="https://fonts.example.org"\n/>',
        b'<script async src="https://cdn.example.org/a.js"></script>',
        b"<script src='//cdn.example.org/a.js' async></script >",
    ]
    assert without_other_servers(kept + b"".join(elsewhere) + kept) == kept + kept


def test_every_input_and_answer_has_a_label_of_its_own(url: str) -> None:
    config = json.loads(get(f"{url}/config")[1])
    labels = [
        each["props"]["label"]
        for each in config["components"]
        if each["type"] in ("audio", "dropdown", "radio", "slider", "textbox")
    ]
    assert all(labels) and len(set(labels)) == len(labels)
    assert {"Answer", "Answer to compare with"} <= set(labels) and "Textbox" not in labels
    (length,) = (each for each in config["components"] if each["props"].get("label") == "Prompts (k)")
    assert "prompts are selected for a question" in length["props"]["info"]


def test_no_statistics_are_collected_and_no_calls_are_kept(url: str) -> None:
    config = json.loads(get(f"{url}/config")[1])
    assert config["analytics_enabled"] is False and not config.get("run_history") and config["footer_links"] == []


def test_a_clip_is_uploaded_and_answered_with_the_adapter_and_without(
    url: str, clips: list[str], expected: Any
) -> None:
    status, (path,) = upload(url, "clip.wav", Path(clips[0]).read_bytes())
    assert status == 200
    messages = ask(url, clip=as_clip(path), comparison="adapter off")
    message, heading, text, selection, other_heading, other_text, other_selection = outputs(messages)
    assert message == ""
    assert text == expected("dogs", clips[0], "What is said?")
    assert other_text == expected(None, clips[0], "What is said?")
    assert "dogs, k = 4" in heading and "adapter off" in other_heading
    assert "4 of 8 prompts" in selection and "no prompts are selected" in other_selection
    assert any(each["msg"] == "process_generating" for each in messages)  # it is streamed


def test_a_refusal_is_a_message_on_the_page(url: str, tmp_path: Path) -> None:
    _, (path,) = upload(url, "long.wav", write_wav(tmp_path / "long.wav", 3.5).read_bytes())
    message, *_ = outputs(ask(url, clip=as_clip(path)))
    assert "The clip is longer than 3 seconds" in message


def test_a_file_that_is_too_large_is_not_uploaded(url: str) -> None:
    status, answer = upload(url, "large.wav", b"0" * 300_000)
    assert status == 413, answer


def test_the_files_of_the_machine_cannot_be_read(url: str, folder: Path) -> None:
    assert get(f"{url}/gradio_api/file={folder / 'picked.wav'}")[0] == 200
    here = Path(__file__)
    for path in (
        folder / "secret.wav",
        "/etc/passwd",
        here,
        here.name,
        folder / "picked.wav/../secret.wav",
        "README.md",
    ):
        for endpoint in ("gradio_api/file=", "gradio_api/file/", "file="):
            status, content = get(f"{url}/{endpoint}{path}")
            assert status in (403, 404), (endpoint, path)
            assert b"RIFF" not in content and b"root:" not in content


def test_a_question_cannot_name_a_file_of_the_machine(url: str, folder: Path) -> None:
    for path in (folder / "secret.wav", folder / "picked.wav", "/etc/passwd", "https://example.org/a.wav"):
        (last,) = (each for each in ask(url, clip=as_clip(str(path))) if each["msg"] == "process_completed")
        assert not last["success"] and "root:" not in json.dumps(last)
        assert ("This page takes uploaded clips only." in json.dumps(last)) == str(path).startswith("https")


@pytest.mark.parametrize(
    "request_path",
    [
        "gradio_api/file=http://127.0.0.1:1/a",
        "gradio_api/file/http://127.0.0.1:1/a",
        "gradio_api/file/HTTPS://127.0.0.1:1/a",
        "gradio_api/proxy=http://127.0.0.1:1/a",
    ],
)
def test_the_page_fetches_no_addresses(url: str, request_path: str) -> None:
    assert get(f"{url}/{request_path}") == (403, b"This page does not fetch other addresses.")


def test_questions_at_the_same_time_get_their_own_answers(url: str, clips: list[str], expected: Any) -> None:
    results: dict[str, list[str]] = {}

    def question(name: str) -> None:
        _, (path,) = upload(url, "clip.wav", Path(clips[1]).read_bytes())
        results[name] = outputs(ask(url, model=name, clip=as_clip(path), k=2))

    threads = [threading.Thread(target=question, args=(name,)) for name in ("dogs", "cats")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert {name: result[2] for name, result in results.items()} == {
        name: expected(name, clips[1], "What is said?", 2) for name in ("dogs", "cats")
    }


def test_a_page_for_a_language_model_without_audio(text_only: Any, tmp_path: Path) -> None:
    with running(create_page(text_only, str(tmp_path))) as url:
        config = json.loads(get(f"{url}/config")[1])
        (clip,) = (each for each in config["components"] if each["type"] == "audio")
        assert clip["props"]["visible"] is False
        _, heading, text, selection, *_ = outputs(ask(url, model="own", k=3))
    assert text and "3 of 8 prompts" in selection and "k = 3" in heading


def test_a_page_for_a_model_without_an_adapter(plain: Any, tmp_path: Path) -> None:
    with running(create_page(plain, str(tmp_path))) as url:
        _, heading, text, selection, *_ = outputs(ask(url, model="plain", k=1))
    assert "plain" in heading and text and "no LiSTEN adapter" in selection
