"""What a request cannot do: read files and addresses, exceed limits, stay for ever, or disturb other requests."""

import base64
import io
import json
import socket
import threading
import time
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import numpy as np
import openai
import pytest
import soundfile

from tests.serving.conftest import MODEL, client_of, running


TEXT = {"type": "text", "text": "What?"}


def chat(*parts, **fields):
    return {"model": MODEL, "messages": [{"role": "user", "content": [*parts, TEXT]}], **fields}


def audio(data, **fields):
    data = base64.b64encode(data).decode() if isinstance(data, bytes) else data
    return {"type": "input_audio", "input_audio": {"data": data, **fields}}


def encoded(samples, rate=16_000, kind="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def post(url, body, headers=None):
    """Status, headers and JSON of an answer; a body is sent as it is, a dictionary as JSON."""
    address = urlsplit(url)
    connection = HTTPConnection(address.hostname, address.port, timeout=60)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    headers = {"Content-Type": "application/json"} if headers is None else headers
    connection.request("POST", f"{address.path}/chat/completions", content, headers)
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    return response.status, response.headers, answer


def error_of(url, body, status=400):
    found, _, answer = post(url, body)
    assert found == status, answer
    assert set(answer) == {"error"} and set(answer["error"]) == {"message", "type", "param", "code"}
    return answer["error"]


@contextmanager
def unfinished_request(url, length=100):
    """A request whose body does not arrive."""
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port), timeout=60) as connection:
        head = (
            f"POST {address.path}/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        )
        connection.sendall(f"{head}Content-Length: {length}\r\n\r\n{{".encode())
        yield connection


@pytest.fixture
def visits():
    """The address of a server, and the requests that it got."""
    found = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            found.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", found
    server.shutdown()


class TestFilesAndAddresses:
    def test_no_field_opens_a_file_or_an_address(self, url, visits, clips, monkeypatch):
        address, found = visits
        opened = []
        for name in ("read_file", "download"):
            monkeypatch.setattr(f"peft_listen.audio.loading.{name}", lambda *args: opened.append(args))
        for target in (f"{address}/a.wav", clips[0], f"file://{clips[0]}"):
            fields = {"url": target}
            for part in (
                audio(target),
                audio(target, format="wav"),
                audio(f"data:{target}"),
                {"type": "audio_url", "audio_url": fields},
                {"type": "image_url", "image_url": fields},
                {"type": "audio", "url": target},
                {"type": "audio", "path": target},
                {"type": "input_audio", "input_audio": target},
                {"type": "input_audio", "input_audio": fields},
                {"type": "file", "file": {"file_id": target}},
            ):
                assert error_of(url, chat(part))["param"].startswith("messages[0].content[0]")
        assert not found and not opened

    @pytest.mark.parametrize("kind", ["m3u8", "concat", "sdp", "xspf"])
    def test_no_content_opens_a_file_or_an_address(self, url, visits, clips, kind):
        address, found = visits
        for target in (f"{address}/a.wav", clips[0]):
            content = {
                "m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{target}\n#EXT-X-ENDLIST\n",
                "concat": f"ffconcat version 1.0\nfile {target}\n",
                "sdp": f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\na=control:{target}\nm=audio 5 RTP/AVP 0\n",
                "xspf": f"<playlist><trackList><track><location>{target}</location></track></trackList></playlist>",
            }[kind]
            error = error_of(url, chat(audio(content.encode(), format="mp3")))
            assert error["code"] == "invalid_audio" and "is not an audio file" in error["message"]
        assert not found

    def test_the_variables_of_the_chat_template_cannot_be_set(self, url):
        for name in ("chat_template", "chat_template_kwargs", "generation_config", "documents"):
            assert name in error_of(url, chat(**{name: {"a": 1}}))["message"]

    def test_models_are_not_loaded_on_a_request(self, url, composite_folder):
        for name in (str(composite_folder), "../small", "", "org/model", "x" * 100_000):
            error = error_of(url, chat() | {"model": name}, 404)
            assert error["code"] == "model_not_found" and MODEL in error["message"] and len(error["message"]) < 500


class TestMalformed:
    @pytest.mark.parametrize(
        ("body", "message"),
        [
            (b"", "not valid JSON"),
            (b"{", "not valid JSON"),
            (b"\xff\xfe", "not valid JSON"),
            (b"[" * 100_000, "not valid JSON"),
            (b"[]", "should be an object"),
            (b'{"model": "small"}', "`messages`"),
            (b'{"messages": [{"role": "user", "content": "a"}]}', "`model`"),
            (b'{"model": "small", "messages": []}', "`messages`"),
            (b'{"model": 3, "messages": [{"role": "user", "content": "a"}]}', "`model`"),
            (b'{"model": "small", "messages": [{"role": "user", "content": "\\ud83d"}]}', "not valid JSON"),
            (
                b'{"model": "small", "temperature": NaN, "messages": [{"role": "user", "content": "a"}]}',
                "`temperature`",
            ),
        ],
    )
    def test_bodies_are_refused_with_a_reason(self, url, body, message):
        assert message in error_of(url, body)["message"]

    @pytest.mark.parametrize(
        ("fields", "param"),
        [
            ({"n": 2}, "n"),
            ({"n": True}, "n"),
            ({"tools": [{"type": "function"}]}, "tools"),
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"logprobs": True}, "logprobs"),
            ({"modalities": ["text", "audio"]}, "modalities"),
            ({"frequency_penalty": 0.5}, "frequency_penalty"),
            ({"temperature": 3}, "temperature"),
            ({"temperature": "1"}, "temperature"),
            ({"top_p": 0}, "top_p"),
            ({"seed": 1 << 70}, "seed"),
            ({"max_tokens": 0}, "max_tokens"),
            ({"max_tokens": 1.5}, "max_tokens"),
            ({"stop": ["a"] * 5}, "stop"),
            ({"stop": [""]}, "stop[0]"),
            ({"stream": "yes"}, "stream"),
            ({"stream_options": {"other": 1}}, "stream_options.other"),
            ({"prompt_length": 3}, "prompt_length"),
        ],
    )
    def test_fields_are_refused_by_name(self, url, fields, param):
        error = error_of(url, chat(**fields))
        assert error["param"] == param and f"`{param}`" in error["message"]

    def test_fields_that_ask_for_nothing_are_accepted(self, url):
        neutral = {"n": 1, "tools": [], "tool_choice": "auto", "frequency_penalty": 0, "presence_penalty": 0.0}
        ignored = {"user": "a", "metadata": {"a": "b"}, "store": False, "logprobs": False, "logit_bias": None}
        status, _, answer = post(url, chat(max_tokens=1, **neutral, **ignored))
        assert status == 200, answer

    @pytest.mark.parametrize(
        "messages",
        [
            [{"role": "tool", "content": "a"}],
            [{"role": "user"}],
            [{"role": "user", "content": None}],
            [{"role": "user", "content": []}],
            [{"role": "user", "content": ["a"]}],
            [{"role": "user", "content": [{"type": "text"}]}],
            [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}],
            [{"role": "user", "content": [audio("UklG", format="../a")]}],
            [{"role": "assistant", "content": "a", "tool_calls": [{"id": "a"}]}],
            [{"role": "system", "content": [audio(b"a")]}],
            [{"role": "user", "content": "<|audio|> What?"}],
            [{"role": "user", "content": [{"type": "text", "text": "<|audio|>"}, TEXT]}],
            ["a"],
        ],
    )
    def test_messages_are_refused_with_their_place(self, url, messages):
        assert error_of(url, {"model": MODEL, "messages": messages})["param"].startswith("messages[0]")

    def test_other_paths_methods_and_types_are_refused(self, url):
        assert post(f"{url}/other", {})[0] == 404
        status, _, answer = post(url, b"model=small", {"Content-Type": "text/plain"})
        assert status == 415 and "application/json" in answer["error"]["message"]
        address = urlsplit(url)
        connection = HTTPConnection(address.hostname, address.port, timeout=60)
        connection.request("GET", f"{address.path}/chat/completions")
        response = connection.getresponse()
        assert (response.status, response.headers["Allow"]) == (405, "POST")
        connection.close()

    def test_an_audio_token_in_two_texts_is_refused(self, url):
        halves = [{"type": "text", "text": text} for text in ("<|au", "dio|>")]
        error = error_of(url, chat(audio(encoded(np.zeros(1600))), *halves))
        assert error["param"] == "messages" and "2 audio tokens <|audio|> for 1 clips" in error["message"]


class TestAudio:
    @pytest.mark.parametrize(
        ("data", "message"),
        [
            ("not base64!", "not valid base64"),
            (b"Hello, this is no audio.", "not an audio file"),
            (encoded(np.zeros(8000), kind="WAV")[:2000], "truncated"),
            (encoded(np.zeros(8000))[:60], "damaged"),
            (b"\0" * 1000, "not an audio file"),
            (b"", "should have at least 1 character"),
        ],
        ids=["characters", "text", "truncated", "damaged", "zeros", "empty"],
    )
    def test_clips_that_cannot_be_read_are_named(self, url, clips, data, message):
        with open(clips[0], "rb") as file:
            good = file.read()
        error = error_of(url, chat(audio(good), audio(data)))
        assert message in error["message"] and error["param"].startswith("messages[0].content[1]")

    def test_the_length_is_that_of_all_clips_together(self, models):
        clip = encoded(np.zeros(16_000))
        with running(models, max_audio_seconds=2.5, max_new_tokens=1) as url:
            assert post(url, chat(audio(clip), audio(clip)))[0] == 200
            error = error_of(url, chat(audio(clip), audio(clip), audio(clip)))
            assert error["param"] == "messages[0].content[2]" and "together may last 2.5 seconds" in error["message"]
            # Twenty minutes of silence take 5 kB.
            error = error_of(url, chat(audio(encoded(np.zeros(20 * 60 * 16_000, dtype=np.int16)))))
            assert "longer than" in error["message"]

    def test_the_length_of_texts_is_limited(self, models):
        with running(models, max_text_characters=20, max_new_tokens=1) as url:
            turns = [{"role": "user", "content": "the quick"}, {"role": "assistant", "content": "brown"}]
            body = {"model": MODEL, "messages": [*turns, {"role": "user", "content": "fox jumps"}]}
            error = error_of(url, body)
            assert (
                error["code"] == "text_too_long"
                and "have 23 characters of text; a request may have 20" in error["message"]
            )
            assert post(url, {"model": MODEL, "messages": turns[:1]})[0] == 200

    def test_the_name_of_an_unknown_field_is_not_repeated_at_length(self, url):
        error = error_of(url, {**chat(), "x" * 100_000: 1})
        assert len(json.dumps(error)) < 2_000 and error["param"].startswith("xxx")

    def test_the_number_of_clips_is_limited(self, models):
        # A clip of one sample becomes features of 30 seconds.
        clip = audio(encoded(np.zeros(1)))
        with running(models, max_clips=3, max_new_tokens=1) as url:
            assert post(url, chat(clip, clip, clip))[0] == 200
            body = {"model": MODEL, "messages": [{"role": "user", "content": [clip, clip]}] * 2}
            error = error_of(url, body)
            assert error["code"] == "too_many_clips" and "have 4 clips; a request may have 3" in error["message"]


class TestSizeAndTime:
    @pytest.mark.parametrize("factor", [2, 10])
    def test_large_bodies_are_refused(self, models, factor):
        with running(models, max_request_bytes=1_000_000) as url:
            body = chat(audio("A" * factor * 1_000_000))
            if factor == 2:
                error = error_of(url, body, 413)
                assert error["code"] == "request_too_large" and "1000000 bytes" in error["message"]
                with client_of(url) as client, pytest.raises(openai.APIStatusError) as caught:
                    client.chat.completions.create(**body)
                assert caught.value.status_code == 413
            else:
                # It is not read to its end.
                with pytest.raises((OSError, AssertionError)):
                    assert post(url, body)[0] != 413
            assert post(url, chat(max_tokens=1))[0] == 200

    def test_a_body_without_a_length_is_counted(self, models):
        with running(models, max_request_bytes=1000) as url:
            address = urlsplit(url)
            connection = HTTPConnection(address.hostname, address.port, timeout=60)
            pieces = (b"[" * 500 for _ in range(3))
            headers = {"Content-Type": "application/json"}
            connection.request("POST", f"{address.path}/chat/completions", pieces, headers, encode_chunked=True)
            assert connection.getresponse().status == 413
            connection.close()

    def test_a_body_that_does_not_arrive_is_given_up(self, models):
        with running(models, timeout=0.5) as url, unfinished_request(url) as connection:
            assert b" 408 " in connection.recv(1000)

    @pytest.mark.parametrize("is_streamed", [False, True])
    def test_an_answer_that_takes_too_long_is_given_up(self, models, is_streamed):
        with running(models, timeout=1.5, max_new_tokens=2000) as url, client_of(url) as client:
            begin = time.monotonic()
            with pytest.raises(openai.APIError, match="not answered in time") as caught:
                list(client.chat.completions.create(**chat(stream=is_streamed)))
            assert time.monotonic() - begin < 30
            if not is_streamed:
                assert caught.value.status_code == 504
                assert caught.value.response.headers["x-should-retry"] == "false"
            # A short answer is still in time.
            assert client.chat.completions.create(**chat(max_tokens=1)).choices

    def test_a_request_does_not_wait_for_a_step_of_the_model(self, models, monkeypatch):
        forward, is_answered = models.pipe.forward, threading.Event()

        def slow(*args, **kwargs):
            assert is_answered.wait(30)
            return forward(*args, **kwargs)

        monkeypatch.setattr(models.pipe, "forward", slow)
        with running(models, timeout=0.5) as url:
            assert error_of(url, chat(), 504)["code"] == "timeout"
            is_answered.set()

    def test_more_requests_than_allowed_are_sent_away(self, models):
        with running(models, max_requests=1) as url:
            with unfinished_request(url):
                while True:
                    status, headers, answer = post(url, chat(max_tokens=1))
                    if status == 429:
                        break
                assert headers["Retry-After"] == "1" and answer["error"]["code"] == "too_many_requests"
            # OpenAI's client tries again.
            with client_of(url, max_retries=5) as client:
                assert client.chat.completions.create(**chat(max_tokens=1)).choices

    def test_a_client_that_leaves_makes_room(self, models):
        with running(models, max_requests=1, max_new_tokens=2000) as url, client_of(url, max_retries=8) as client:
            stream = client.chat.completions.create(**chat(stream=True))
            next(iter(stream))
            stream.close()
            assert client.chat.completions.create(**chat(max_tokens=1)).choices
            with client_of(url, timeout=0.5) as impatient, pytest.raises(openai.APITimeoutError):
                impatient.chat.completions.create(**chat())
            begin = time.monotonic()
            assert client.chat.completions.create(**chat(max_tokens=1)).choices
            assert time.monotonic() - begin < 30

    def test_chats_that_are_too_long_are_refused_and_others_in_the_batch_are_not(self, url):
        long = {"model": MODEL, "messages": [{"role": "user", "content": "zq" * 2000}]}
        statuses: dict[int, int] = {}

        def send(number):
            statuses[number] = post(url, long if number % 2 else chat(max_tokens=2))[0]

        threads = [threading.Thread(target=send, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert statuses == {0: 200, 1: 400, 2: 200, 3: 400, 4: 200, 5: 400}
        error = error_of(url, long)
        assert error["code"] == "context_length_exceeded" and "2048 positions" in error["message"]
        error = error_of(url, {**long, "stream": True})
        assert error["code"] == "context_length_exceeded"


def test_a_key_is_needed_if_there_is_one(models):
    with running(models, api_key="sécret") as url, client_of(url, api_key="any") as client:
        good = {"Content-Type": "application/json", "Authorization": "Bearer sécret".encode()}
        assert post(url, chat(max_tokens=1), good)[0] == 200
        with pytest.raises(openai.AuthenticationError):
            client.models.list()
    with running(models, api_key="secret") as url:
        for key in ("other", "secret2", "sécret"):
            status, _, answer = post(
                url, chat(), {"Content-Type": "application/json", "Authorization": f"Bearer {key}".encode()}
            )
            assert status == 401 and "secret" not in json.dumps(answer)
        written = {"Content-Type": "application/json", "Authorization": "bearer secret"}
        assert post(url, chat(max_tokens=1), written)[0] == 200
        for header in ("secret", "Basic secret", "Bearer", ""):
            assert post(url, chat(), {**written, "Authorization": header})[0] == 401
        with client_of(url, api_key="wrong") as client, pytest.raises(openai.AuthenticationError):
            client.models.list()
        with client_of(url, api_key="secret") as client:
            assert client.chat.completions.create(**chat(max_tokens=1)).choices
            assert client.models.retrieve(MODEL).id == MODEL
