"""
A server with OpenAI's API for models with audio.

A connection is limited (`connections.py`), and the host of its requests is checked (`host_check.py`). A request is read and
checked (`chat_request.py`), its chat is rendered and its audio decoded (`preparation.py`), it waits for a batch and is answered
(`worker.py`), and the text is sent while it is generated (`answer_text.py`, `app.py`).
"""

try:
    import pydantic  # noqa: F401
    import starlette  # noqa: F401
    import uvicorn  # noqa: F401
except ImportError as error:
    raise ImportError('The server needs starlette, pydantic and uvicorn: pip install "peft-listen[serve]"') from error

from .app import create_app
from .connections import QuietProtocol
from .host_check import host_names
from .models import ServedModels, load_models, name_models
from .server import AppServer, Server, address_of, bind, url_of
from .settings import ServerSettings


__all__ = [
    "AppServer",
    "QuietProtocol",
    "ServedModels",
    "Server",
    "ServerSettings",
    "address_of",
    "bind",
    "create_app",
    "host_names",
    "load_models",
    "name_models",
    "url_of",
]
