"""The application as a part of another one."""

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient

from peft_listen.serving import ServerSettings, create_app
from tests.serving.conftest import MODEL


@pytest.mark.parametrize("runs_lifespan", [True, False])
def test_an_application_that_mounts_it_runs_its_lifespan(models, runs_lifespan, caplog):
    app = create_app(models, ServerSettings(max_new_tokens=1))
    lifespan = app.router.lifespan_context if runs_lifespan else None
    outer = Starlette(routes=[Mount("/llm", app)], lifespan=lifespan)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
    with TestClient(outer, raise_server_exceptions=False) as client:
        answer = client.post("/llm/v1/chat/completions", json=body)
    assert answer.status_code == (200 if runs_lifespan else 500)
    if not runs_lifespan:
        with TestClient(outer) as client, pytest.raises(RuntimeError, match=r"lifespan=app.router.lifespan_context"):
            client.post("/llm/v1/chat/completions", json=body)
