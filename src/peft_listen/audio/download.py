"""Downloads over http(s) with one deadline for the whole of it, and with redirects that are checked."""

import base64
import io
import ipaddress
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from .addresses import display_name
from .limits import AudioLimits, LimitError, check_size


# Longest wait in seconds for a server that sends nothing at all.
_STALL_SECONDS = 30.0
_BLOCK_BYTES = 1 << 16
# IPv6 addresses that gateways translate to the IPv4 address in their last four bytes.
# NAT64 (also for local use) and the obsolete IPv4-compatible addresses end in an IPv4 address.
_WITH_IPV4_AT_THE_END = [ipaddress.ip_network(network) for network in ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")]


def download(url: str, limits: AudioLimits) -> bytes:
    """
    Downloads a file.

    `requests`, `httpx` and `fsspec` limit the time of each single read only, follow redirects without a check of the
    addresses, and fsspec would accept any protocol; the standard library lets this module check each connection.

    Args:
        url (`str`):
            An http(s) URL. A user name and password in it are sent as basic authentication, and only to its host.
        limits ([`AudioLimits`]):
            The limits on time, size and addresses.

    Raises:
        OSError: The server cannot be reached, answers with an error, redirects to another protocol or to an address that
            is not allowed, or exceeds a limit. No message contains the user name, password or query of the URL.
    """
    name = display_name(url)
    connections = _Connections(limits)
    try:
        address, authorization = _split_credentials(url)
        request = urllib.request.Request(address, headers={"User-Agent": "peft-listen"})
        if authorization:
            request.add_unredirected_header("Authorization", authorization)
        with connections.deadline(), connections.opener().open(request) as response:
            expected = int(response.headers.get("Content-Length") or 0)
            check_size(expected, name, limits)
            blocks, num_bytes = [], 0
            while block := response.read1(_BLOCK_BYTES):
                blocks.append(block)
                num_bytes += len(block)
                check_size(num_bytes, name, limits)
        if connections.is_over():
            raise TimeoutError("timed out")
    except urllib.error.HTTPError as error:
        error.close()
        raise OSError(
            f"{name}: the server answered with HTTP status {error.code} ({error.reason}). Check the address and whether "
            "it requires a login; a downloaded file can be passed by its path."
        ) from None
    except LimitError:
        raise
    except (OSError, HTTPException, ValueError) as error:
        if connections.is_over():
            raise LimitError(
                f"{name}: the audio could not be downloaded (timed out: the whole download takes longer than the limit "
                f"of {limits.download_seconds:g} seconds). Download it first and pass its path, or raise "
                "`download_seconds` of `AudioLimits`."
            ) from None
        # urllib wraps the errors of a connection.
        refusal = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(refusal, _RefusedAddressError):
            raise OSError(f"{name}: {refusal} Download the file first and pass its path.") from None
        # The reasons of ValueError and InvalidURL repeat parts of the URL, and may contain a password.
        reason = (
            str(error) if isinstance(error, OSError) else f"{type(error).__name__}: the address or answer is invalid"
        )
        raise OSError(
            f"{name}: the audio could not be downloaded ({reason}). Check the address and the network."
        ) from None
    if num_bytes < expected:
        raise OSError(f"{name}: the download ended after {num_bytes} of {expected} bytes. Try again.")
    return b"".join(blocks)


class _RefusedAddressError(OSError):
    """A redirect or an address that is not allowed."""


def _split_credentials(url: str) -> tuple[str, str | None]:
    """Returns the URL without user name and password, and the header that sends them."""
    parts = urlsplit(url.strip())
    credentials, at, host = parts.netloc.rpartition("@")
    # Reading the port checks it.
    if not parts.hostname or parts.port == 0:
        raise ValueError("no host")
    # urllib does not escape spaces and letters outside ASCII.
    path, query = (quote(part, safe="/%:=&?~+!$,;'@()*[]") for part in (parts.path, parts.query))
    address = urlunsplit(SplitResult(parts.scheme.lower(), host.encode("idna").decode(), path, query, ""))
    if not at:
        return address, None
    user, _, password = credentials.partition(":")
    token = base64.b64encode(f"{unquote(user)}:{unquote(password)}".encode()).decode()
    return address, f"Basic {token}"


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http(s) URLs only; credentials go on to the same host only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if urlsplit(newurl).scheme.lower() not in ("http", "https"):
            raise _refused_redirect(newurl)
        address, authorization = _split_credentials(newurl)
        redirected = super().redirect_request(req, fp, code, msg, headers, address)
        if redirected is not None:
            old, new = urlsplit(req.full_url), urlsplit(address)
            if authorization is None and (old.scheme, old.netloc) == (new.scheme, new.netloc):
                authorization = req.unredirected_hdrs.get("Authorization")
            if authorization:
                redirected.add_unredirected_header("Authorization", authorization)
        return redirected

    def http_error_302(self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any) -> Any:
        # The base class has a check of its own, which allows ftp and repeats the whole address in its message.
        location = headers.get("location") or headers.get("uri") or ""
        scheme = urlsplit(location).scheme.lower()
        if scheme not in ("", "http", "https"):
            raise _refused_redirect(location)
        # The base class reads the body of the redirect to its end, which a server may never send.
        fp.close()
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def _refused_redirect(location: str) -> _RefusedAddressError:
    scheme = urlsplit(location).scheme
    return _RefusedAddressError(
        f"the server redirects to another protocol, {scheme}:. Only http and https are followed."
    )


class _Connections:
    """Opens the connections of one download, checks their addresses, and cuts them off at the deadline."""

    def __init__(self, limits: AudioLimits) -> None:
        self.limits = limits
        self.expired = False
        self._end = time.monotonic() + limits.download_seconds
        self._sockets: list[socket.socket] = []
        self._lock = threading.Lock()

    def opener(self) -> urllib.request.OpenerDirector:
        opener = urllib.request.OpenerDirector()
        handlers: list[urllib.request.BaseHandler] = [
            _Http(self.connect),
            _Https(self.connect),
            _Redirects(),
            urllib.request.HTTPErrorProcessor(),
            urllib.request.HTTPDefaultErrorHandler(),
        ]
        if self.limits.allow_private_addresses:
            handlers.append(urllib.request.ProxyHandler())
        for handler in handlers:
            opener.add_handler(handler)
        return opener

    def deadline(self) -> "_Deadline":
        return _Deadline(self)

    def remaining(self) -> float:
        return self._end - time.monotonic()

    def is_over(self) -> bool:
        """Whether the time is over; the connections may have been shut down already."""
        return self.expired or self.remaining() <= 0

    def connect(self, address: tuple[str, int], *args: Any, **kwargs: Any) -> socket.socket:
        """The same as `socket.create_connection`, to an address that has been checked."""
        host, port = address
        problem: OSError | None = None
        for family, kind, protocol, _name, socket_address in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
            if not self.limits.allow_private_addresses and not _is_public(str(socket_address[0])):
                raise _RefusedAddressError(
                    f"the host {host} has the address {socket_address[0]}, which is not public, and "
                    "`allow_private_addresses` of `AudioLimits` is False."
                )
            connection = socket.socket(family, kind, protocol)
            try:
                # The timer ends what follows, but not the connecting.
                connection.settimeout(max(1e-3, min(_STALL_SECONDS, self.remaining())))
                connection.connect(socket_address)
                connection.settimeout(_STALL_SECONDS)
                self._watch(connection)
                return connection
            except OSError as error:
                connection.close()
                problem = error
        raise problem or OSError(f"The host {host} has no address.")

    def _watch(self, connection: socket.socket) -> None:
        with self._lock:
            if self.expired:
                raise TimeoutError("timed out")
            # The copy stays valid when ssl takes over the connection.
            self._sockets.append(connection.dup())

    def expire(self) -> None:
        with self._lock:
            self.expired = True
            for copy in self._sockets:
                try:
                    copy.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # the server has closed it already

    def close(self) -> None:
        with self._lock:
            for copy in self._sockets:
                copy.close()
            self._sockets.clear()


class _Deadline:
    """
    Shuts all connections down when the time of the download is over.

    A timeout of a socket starts again with every byte, so a server that sends slowly never exceeds it.
    """

    def __init__(self, connections: _Connections) -> None:
        self._connections = connections
        # `threading.Timer` does not accept infinity.
        seconds = min(max(0.0, connections.remaining()), threading.TIMEOUT_MAX)
        self._timer = threading.Timer(seconds, connections.expire)
        self._timer.daemon = True

    def __enter__(self) -> None:
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        self._connections.close()


class _Http(urllib.request.HTTPHandler):
    def __init__(self, connect: Callable[..., socket.socket]) -> None:
        super().__init__()
        self._connect = connect

    def http_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **kwargs: Any) -> HTTPConnection:
        connection = HTTPConnection(host, **kwargs)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, connect: Callable[..., socket.socket]) -> None:
        super().__init__()
        self._connect = connect

    def https_open(self, req: urllib.request.Request) -> Any:
        return self.do_open(self._connection, req)

    def _connection(self, host: str, **kwargs: Any) -> HTTPSConnection:
        connection = HTTPSConnection(host, **kwargs)
        connection._create_connection = self._connect  # type: ignore[attr-defined]
        return connection


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.is_site_local:
            return False
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if any(parsed in network for network in _WITH_IPV4_AT_THE_END):
            inner = ipaddress.IPv4Address(parsed.packed[-4:])
        if inner is not None:
            parsed = inner
    return parsed.is_global and not parsed.is_multicast
