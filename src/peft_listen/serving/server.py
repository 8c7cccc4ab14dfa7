"""Runs the application on an address of this machine."""

import copy
import socket
from collections.abc import Callable

import uvicorn
from uvicorn.config import LOGGING_CONFIG

from .app import create_app
from .models import ServedModels
from .settings import ServerSettings


# Seconds that requests in progress have to end after the server was asked to stop.
_SHUTDOWN_SECONDS = 5


def bind(host: str, port: int) -> socket.socket:
    """
    Reserves an address before a model is loaded. Nobody can connect yet.

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
        raise OSError(f"The server cannot listen on {host}, port {port}: {error.strerror or error}.") from error
    return sock


def url_of(sock: socket.socket) -> str:
    """The `base_url` of OpenAI's clients for a socket of [`bind`]."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"


class Server:
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
        logging = copy.deepcopy(LOGGING_CONFIG)
        logging["handlers"]["access"]["stream"] = "ext://sys.stderr"
        logging["loggers"]["peft_listen.serving"] = {"handlers": ["default"], "level": "INFO", "propagate": False}
        config = uvicorn.Config(
            create_app(models, settings),
            log_config=logging,
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
        SIGTERM). The socket is closed at the end.
        """
        with self._sock:
            self._server.run(sockets=[self._sock])

    def stop(self) -> None:
        """Ends `run`, which runs in another thread. Requests in progress have five seconds to end."""
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, on_start: Callable[[], None] | None) -> None:
        super().__init__(config)
        self._on_start = on_start

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self._on_start is not None and self.started:
            self._on_start()
