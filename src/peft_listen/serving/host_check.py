"""Refuses requests that a web page of another site may have sent by the name of that site."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Collection
from urllib.parse import urlsplit

import idna
from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from .errors import RequestError


_HOST_NAME = re.compile(r"[\w.-]+", re.ASCII)


def host_names(names: Collection[str], setting: str = "`allowed_hosts` (`--allowed-host`)") -> frozenset[str]:
    """
    Names of hosts in the form in which browsers send them: in lower case, and internationalized ones in ASCII (`xn--...`).

    Args:
        names (`Collection[str]`): The names.
        setting (`str`): What the error calls them.

    Returns:
        `frozenset[str]`

    Raises:
        ValueError: One is not a name of a host, or `names` is one string.
    """
    try:
        if isinstance(names, str):
            raise ValueError
        return frozenset(map(_as_sent, names))
    except ValueError as error:  # IDNAError is one
        raise ValueError(
            f"{setting} must be a list of names without scheme and port, such as ['my-server.example'], got {names!r}."
        ) from error


def _as_sent(name: str) -> str:
    if not name.isascii():
        # As browsers do it. The codec "idna" of Python is for an earlier standard, with another form of some names.
        name = idna.encode(name, uts46=True).decode("ascii")
    if not _HOST_NAME.fullmatch(name):
        raise ValueError
    return name.lower().rstrip(".")


class HostCheck:
    """
    An application that answers requests for known hosts only: IP addresses, `localhost`, and further names.

    A web page can make a browser ask a server on this machine, and read the answers, if the name of its site is changed to
    an address of this machine (DNS rebinding). The browser then sends this name as the host, and no page can change that.
    Starlette's `TrustedHostMiddleware` has no pattern for IP addresses, of which this machine may have any.

    Args:
        app (`ASGIApp`): The application whose requests are checked.
        names (`Collection[str]`): Further names of the server.

    Raises:
        ValueError: One of them is not a name of a host.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self._app = app
        self._names = {"localhost", *host_names(names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or passes it on."""
        if scope["type"] == "http" and not self._is_known(host := Headers(scope=scope).get("host", "")):
            error = RequestError(
                f"{host[:200]!r} is not a known name of this server, so the request may come from a web page of another site. "
                "If it is a name of the server, start it with `--allowed-host NAME` (`allowed_hosts` in Python).",
                status=403,
                code="unknown_host",
            )
            await JSONResponse(error.body, status_code=error.status)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _is_known(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:  # half of a pair of brackets
            return False
        return name in self._names or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
