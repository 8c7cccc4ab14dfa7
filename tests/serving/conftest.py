"""A model whose answers depend on audio and question, served on 127.0.0.1."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from transformers import pipeline

from peft_listen.serving import ServedModels, Server, ServerSettings, bind, url_of
from tests.device import test_device
from tests.served import running_server
from tests.small_models import make_adapted_chat_model, make_chat_processor


MODEL = "small"
LENGTH = 8


@contextmanager
def running(models: ServedModels, **settings: Any) -> Iterator[str]:
    """The `base_url` of a server that runs in a thread."""
    sock, started = bind("127.0.0.1", 0), threading.Event()
    url = url_of(sock)
    settings = {"max_new_tokens": LENGTH, "timeout": 60.0, **settings}
    server = Server(models, sock, ServerSettings(**settings), started.set)
    with running_server(server, started):
        yield url


@contextmanager
def client_of(url: str, **settings: Any) -> Iterator[openai.OpenAI]:
    """OpenAI's client, which compares answers with the schema of OpenAI, and does not repeat requests."""
    settings = {"api_key": "any", "max_retries": 0, "timeout": 60.0, **settings}
    with openai.OpenAI(base_url=url, _strict_response_validation=True, **settings) as client:
        yield client


@pytest.fixture(scope="session")
def chat_pipe() -> Any:
    model, processor = make_adapted_chat_model(center_queries=False, init_weights=False), make_chat_processor()
    model.get_base_model().generation_config.eos_token_id = None
    return pipeline("audio-text-to-text", model=model.eval(), processor=processor, device=test_device())


@pytest.fixture(scope="session")
def models(chat_pipe: Any) -> ServedModels:
    return ServedModels(chat_pipe, MODEL)


@pytest.fixture(scope="session")
def url(models: ServedModels) -> Iterator[str]:
    with running(models) as url:
        yield url


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[openai.OpenAI]:
    with client_of(url) as client:
        yield client


@pytest.fixture(scope="session")
def as_part() -> Callable[[str], dict[str, Any]]:
    """The part of a message for the WAV file of a path."""

    def as_part(path: str) -> dict[str, Any]:
        data = base64.b64encode(Path(path).read_bytes()).decode()
        return {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}

    return as_part


@pytest.fixture(scope="session")
def ask(client: openai.OpenAI, as_part: Callable[[str], dict[str, Any]]) -> Callable[..., Any]:
    """Asks the server about a clip, and returns the completion."""

    def ask(clip: str | None, question: str, **settings: Any) -> Any:
        parts = [] if clip is None else [as_part(clip)]
        messages: Any = [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]
        return client.chat.completions.create(**{"model": MODEL, "messages": messages, **settings})

    return ask
