"""Runs the application on an address of this machine."""

import functools
import logging
import socket
import sys
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TextIO

import uvicorn
from starlette.types import ASGIApp
from uvicorn.logging import AccessFormatter, DefaultFormatter
from uvicorn.protocols.http.h11_impl import H11Protocol

from . import connections
from .app import create_app
from .host_check import HostCheck
from .models import ServedModels
from .settings import ServerSettings


# Seconds that requests in progress have to end after the server was asked to stop.
_SHUTDOWN_SECONDS = 5

# The formatter of each logger of a server.
_LINE = "%(levelprefix)s %(message)s"
_REQUEST = '%(levelprefix)s %(client_addr)s - "%(request_line)s" %(status_code)s'
_FORMATTERS = {
    "uvicorn": DefaultFormatter(_LINE),
    "uvicorn.access": AccessFormatter(_REQUEST),
    "peft_listen.serving": DefaultFormatter(_LINE),
    "peft_listen.page": DefaultFormatter(_LINE),
}


def bind(host: str, port: int) -> socket.socket:
    """
    Reserves an address before a model is loaded. Nobody can connect yet, and another server that starts at the same time may
    reserve it too; then the one that runs first gets it.

    Args:
        host (`str`): Name or address of a network interface.
        port (`int`): The port; 0 takes a free one.

    Returns:
        `socket.socket`: the socket, for [`Server`].

    Raises:
        OSError: The address is in use or does not belong to this machine.
    """
    sock = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        if sock is not None:
            sock.close()
        raise _cannot_listen(host, port, error) from error
    return sock


def _listen(sock: socket.socket) -> None:
    """Opens a socket of [`bind`] for connections."""
    try:
        sock.listen()
    except OSError as error:
        host, port = sock.getsockname()[:2]
        raise _cannot_listen(host, port, error) from error


def _cannot_listen(host: str, port: int, error: OSError) -> OSError:
    return OSError(f"The server cannot listen on {host}, port {port}: {error.strerror or error}.")


def address_of(sock: socket.socket) -> str:
    """The address for browsers of a socket of [`bind`]."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def url_of(sock: socket.socket) -> str:
    """The `base_url` of OpenAI's clients for a socket of [`bind`]."""
    return f"{address_of(sock)}/v1"


class AppServer:
    """
    Runs an application on an address.

    Args:
        app (`ASGIApp`): The application.
        sock (`socket.socket`): From [`bind`].
        on_start (`Callable`, *optional*): Called when clients can connect.
        allowed_hosts (`Collection[str]`, *optional*): Names by which clients may reach the application, in addition to
            `localhost` and IP addresses. If not given, requests for every host are answered.
        protocol (`Any`, *optional*): The protocol, as uvicorn's `http` takes it. By default uvicorn's own, which logs each
            request; with [`QuietProtocol`] only errors are logged.

    Raises:
        ValueError: An allowed host is not a name.
    """

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        on_start: Callable[[], None] | None = None,
        allowed_hosts: Collection[str] | None = None,
        protocol: Any = H11Protocol,
    ) -> None:
        config = uvicorn.Config(
            app if allowed_hosts is None else HostCheck(app, allowed_hosts),
            http=protocol,
            log_config=None,
            timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
            server_header=False,
            lifespan="on",
            ws="none",
        )
        self._server = _Uvicorn(config, on_start)
        self._sock = sock

    def run(self) -> None:
        """
        Runs until `stop` is called or, in the main thread, until the process gets a signal to stop (Ctrl-C,
        SIGTERM). The socket is closed at the end. Requests and errors are logged to stderr, unless the application
        has given one of the loggers `uvicorn`, `uvicorn.access`, `peft_listen.serving` and `peft_listen.page` a handler.

        Raises:
            OSError: Another server listens on the address since [`bind`].
        """
        with self._sock, _logged_to_stderr():
            # uvicorn would do it after it has started the application, and raise an error that does not name the address.
            _listen(self._sock)
            self._server.run(sockets=[self._sock])

    def stop(self) -> None:
        """Ends `run`, which runs in another thread. Requests in progress have five seconds to end."""
        self._server.should_exit = True


class Server(AppServer):
    """
    Answers requests on an address.

    Args:
        models ([`ServedModels`]): The models.
        sock (`socket.socket`): From [`bind`].
        settings ([`ServerSettings`], *optional*): The limits.
        on_start (`Callable`, *optional*): Called when clients can connect.
    """

    def __init__(
        self,
        models: ServedModels,
        sock: socket.socket,
        settings: ServerSettings | None = None,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        settings = settings or ServerSettings()
        protocol: Any = functools.partial(
            connections.LimitedProtocol,
            max_connections=settings.max_connections,
            request_seconds=settings.timeout + connections.GRACE_SECONDS,
        )
        # A web page of another site does not know the key.
        allowed_hosts = settings.allowed_hosts if settings.api_key is None else None
        super().__init__(create_app(models, settings), sock, on_start, allowed_hosts=allowed_hosts, protocol=protocol)


@contextmanager
def _logged_to_stderr() -> Iterator[None]:
    # uvicorn's own configuration is for a process that is nothing but a server: `logging.config.dictConfig` closes the
    # handlers of all libraries, some with the streams that they write to.
    loggers = [logging.getLogger(name) for name in _FORMATTERS]
    with ExitStack() as stack:
        if not any(logger.handlers for logger in loggers):
            for logger, formatter in zip(loggers, _FORMATTERS.values(), strict=True):
                handler = _StderrHandler()
                handler.setFormatter(formatter)
                stack.callback(_reset, logger, handler, logger.level, logger.propagate)
                logger.addHandler(handler)
                logger.setLevel(logging.INFO)
                logger.propagate = False
        yield


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to what is stderr at that time, since servers of one process share the handler."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def _reset(logger: logging.Logger, handler: logging.Handler, level: int, propagate: bool) -> None:
    logger.removeHandler(handler)
    logger.setLevel(level)
    logger.propagate = propagate


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_start is not None and self.started:
            self._on_start()
