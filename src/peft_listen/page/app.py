"""The application of the page: its components behind a filter of requests, with the limits of uploads."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

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
    """Runs gradio's application with its folder of uploads, without the requests in which it fetches addresses for a browser."""

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
        else:
            await self._app(scope, receive, send)


def _fetches_an_address(path: str) -> bool:
    return "/proxy=" in path or "file=http:" in path or "file=https:" in path
