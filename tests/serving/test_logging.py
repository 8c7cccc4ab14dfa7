"""What a server writes, in a process that logs for itself."""

import io
import logging

import openai
import pytest

from tests.serving.conftest import MODEL, running


@pytest.fixture(autouse=True)
def loggers(monkeypatch):
    """The loggers of a server, without the handlers of servers of other tests that still run."""
    loggers = [
        logging.getLogger(name) for name in ("uvicorn", "uvicorn.access", "peft_listen.serving", "peft_listen.page")
    ]
    for logger in loggers:
        monkeypatch.setattr(logger, "handlers", [])
        monkeypatch.setattr(logger, "propagate", True)
    return loggers


class Closing(logging.StreamHandler):
    """Closes what it writes to, as the handler of absl, which tensorboard imports, closes what was stderr once."""

    def close(self):
        self.stream.close()
        super().close()


def ask(url):
    with openai.OpenAI(base_url=url, api_key="any", max_retries=0) as client:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": "a"}])


def test_handlers_of_other_libraries_stay_open(models):
    stream = io.StringIO()
    handler = Closing(stream)
    with running(models, max_new_tokens=1) as url:
        ask(url)
    assert not stream.closed
    handler.close()


def test_requests_are_logged_to_stderr_while_the_server_runs(models, loggers, capsys):
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    with running(models, max_new_tokens=1) as url:
        ask(url)
    captured = capsys.readouterr()
    assert captured.out == "" and '"POST /v1/chat/completions HTTP/1.1" 200' in captured.err
    assert [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers] == before


def test_an_application_with_handlers_of_its_own_keeps_them(models, caplog, capsys):
    logger, stream = logging.getLogger("uvicorn.access"), io.StringIO()
    handler = logging.StreamHandler(stream)
    logger.addHandler(handler)
    caplog.set_level(logging.INFO, logger.name)
    with running(models, max_new_tokens=1) as url:
        ask(url)
    assert logger.handlers == [handler]
    assert "POST /v1/chat/completions" in stream.getvalue()
    assert "POST /v1/chat/completions" not in capsys.readouterr().err
