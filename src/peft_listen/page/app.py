"""The application of the page: its components behind a filter of requests, with the limits of uploads."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import html
from .answering import Answering
from .layout import make_blocks, make_theme
from .tasks import Tasks


_CACHE_VARIABLE = "GRADIO_TEMP_DIR"


def create_page(answering: Answering, upload_folder: str, tasks: Tasks | None = None) -> ASGIApp:
    """
    The page, for an ASGI server.

    It asks no other server for anything: neither does the browser of a visitor. Files are read from `upload_folder` and, as they
    are picked, from the clips of `tasks` alone.

    Args:
        answering ([`Answering`]): Asks the models.
        upload_folder (`str`): Folder for uploaded clips.
        tasks ([`Tasks`], *optional*): What the page offers to ask, and clips to pick.

    Returns:
        `ASGIApp`: the application. It needs its lifespan; one page at a time can run in a process.
    """
    optional: dict[str, Any] = {}
    if "run_history" in inspect.signature(gr.mount_gradio_app).parameters:  # not in earlier versions, which keep none
        optional["run_history"] = False
    folder = os.path.realpath(upload_folder)
    with _uploads_in(folder):
        blocks = make_blocks(answering, folder, tasks)
        app = gr.mount_gradio_app(
            FastAPI(docs_url=None, redoc_url=None, openapi_url=None),
            blocks,
            path="/",
            footer_links=[],
            allowed_paths=[] if tasks is None else [clip.path for clip in tasks.clips],
            show_error=False,
            max_file_size=answering.settings.max_upload_bytes,
            ssr_mode=False,
            enable_monitoring=False,
            mcp_server=False,
            pwa=False,
            theme=make_theme(),
            css=html.STYLE,
            **optional,
        )
    # Without it, gradio takes any file of the machine that a request names for an upload.
    blocks.has_launched = True
    return _Page(app, folder)


@contextmanager
def _uploads_in(folder: str) -> Iterator[None]:
    """Sets the folder of uploads, which gradio looks up when a page is made and in each request."""
    before = os.environ.get(_CACHE_VARIABLE)
    os.environ[_CACHE_VARIABLE] = folder
    try:
        yield
    finally:
        if before is None:
            del os.environ[_CACHE_VARIABLE]
        else:
            os.environ[_CACHE_VARIABLE] = before


class _Page:
    """Runs gradio's application with its folder of uploads, without what it takes from other servers: elements of its document,
    and requests in which it fetches addresses for a browser."""

    def __init__(self, app: ASGIApp, folder: str) -> None:
        self._app = app
        self._folder = folder

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":  # this call lasts as long as the application runs
            with _uploads_in(self._folder):
                await self._app(scope, receive, send)
        elif scope["type"] == "http" and _fetches_an_address(scope["path"]):
            response = PlainTextResponse("This page does not fetch other addresses.", status_code=403)
            await response(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == "/":
            # Not compressed, so that it can be changed.
            headers = [header for header in scope["headers"] if header[0] != b"accept-encoding"]
            await self._app({**scope, "headers": headers}, receive, _DocumentSender(send))
        else:
            await self._app(scope, receive, send)


class _DocumentSender:
    """Sends a response whose elements from other servers are left out."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._start: Message = {}
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            body = without_other_servers(self._body)
            headers = [header for header in self._start["headers"] if header[0].lower() != b"content-length"]
            headers.append((b"content-length", str(len(body)).encode()))
            await self._send({**self._start, "headers": headers})
            await self._send({**message, "body": body})


# Elements that make a browser ask another server when it reads the document.
_FROM_ELSEWHERE = re.compile(
    rb"""<link\b[^>]*\shref=["']?(?:https?:)?//[^>]*>|<script\b[^>]*\ssrc=["']?(?:https?:)?//[^>]*>\s*</script\s*>""",
    re.IGNORECASE,
)


def without_other_servers(document: bytes) -> bytes:
    """An HTML document without its links to fonts and scripts of other servers, which some versions of gradio have."""
    return _FROM_ELSEWHERE.sub(b"", document)


def _fetches_an_address(path: str) -> bool:
    return re.search(r"/proxy=|/file[=/]https?:", path, re.IGNORECASE) is not None
