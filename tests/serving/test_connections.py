"""What a connection cannot do: stay without a request, or take the place of others."""

import socket
import time
from contextlib import ExitStack, closing
from urllib.parse import urlsplit

import openai
import pytest

from peft_listen.serving import connections
from tests.serving.conftest import MODEL, client_of, running


HEAD = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "What?"}]}


def connect(url):
    address = urlsplit(url)
    return closing(socket.create_connection((address.hostname, address.port), timeout=30))


def seconds_until_closed(connection, sent=b""):
    """Time until the server closes a connection to which one byte is sent every 50 ms."""
    begin = time.monotonic()
    connection.settimeout(0.05)
    left = iter(sent)
    while time.monotonic() - begin < 20:
        try:
            if connection.recv(1000) == b"":
                break
        except TimeoutError:
            if (byte := next(left, None)) is not None:
                connection.sendall(bytes([byte]))
        except OSError:  # reset
            break
    return time.monotonic() - begin


@pytest.fixture
def short_header_time(monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.5)


@pytest.mark.parametrize("sent", [b"", HEAD[:-2] + b"X-Long: " + b"a" * 1000], ids=["nothing", "byte by byte"])
def test_headers_must_arrive_in_time(models, short_header_time, sent):
    with running(models) as url:
        with connect(url) as connection:
            assert 0.4 < seconds_until_closed(connection, sent) < 5
        # The same for the second request of a connection.
        with connect(url) as connection:
            connection.sendall(HEAD)
            assert b"200 OK" in connection.recv(1000)
            assert 0.4 < seconds_until_closed(connection, sent) < 5


def test_headers_have_a_size(url):
    with connect(url) as connection:
        connection.sendall(HEAD[:-2] + b"X-Long: " + b"a" * 100_000)
        assert b" 400 " in connection.recv(1000)


def test_an_answer_may_take_longer_than_the_headers(models, monkeypatch):
    monkeypatch.setattr(connections, "HEADER_SECONDS", 0.4)
    with running(models, max_new_tokens=600) as url, client_of(url) as client:
        begin = time.monotonic()
        assert client.chat.completions.create(**CHAT).choices[0].finish_reason == "length"
        assert time.monotonic() - begin > 0.4


def test_a_request_ends_with_its_time_whatever_the_application_does(models, monkeypatch):
    monkeypatch.setattr(connections, "GRACE_SECONDS", -59.0)
    with running(models, max_new_tokens=2000, timeout=60.0) as url, client_of(url) as client:
        begin = time.monotonic()
        with pytest.raises(openai.APIConnectionError):
            client.chat.completions.create(**CHAT)
        assert 0.9 < time.monotonic() - begin < 10


def test_the_number_of_connections_is_limited(models):
    with running(models, max_connections=3) as url:
        with ExitStack() as stack:
            held = [stack.enter_context(connect(url)) for _ in range(3)]
            with connect(url) as fourth:
                assert seconds_until_closed(fourth) < 5
            held[0].sendall(HEAD)
            assert b"200 OK" in held[0].recv(1000)
        # OpenAI's client tries again until a place is free.
        with client_of(url, max_retries=5) as client:
            assert client.models.list().data
