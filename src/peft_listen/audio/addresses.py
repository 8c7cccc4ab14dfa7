"""Addresses of audio: which strings are URLs, and how messages name an address without its credentials."""

import base64
import binascii
import re
from urllib.parse import unquote_to_bytes

from .limits import AudioLimits, check_size


_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)
_HOST_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d+)?")
# A string that is passed as a path by mistake, such as bare base64, can be of any length.
_MAX_NAME_LENGTH = 1000


def is_url(source: str) -> bool:
    """Whether `source` is an http(s) URL or a `data:` URI, in small or capital letters, and not a path."""
    return source[:8].lower().startswith(("http://", "https://", "data:"))


def is_data_uri(source: str) -> bool:
    """Whether `source` is a `data:` URI, which contains its audio."""
    return source[:5].lower() == "data:"


def display_name(source: str) -> str:
    """
    Names a path or an address in messages, without what may be secret.

    Args:
        source (`str`): A path, URL or `data:` URI.

    Returns:
        `str`: The path; the URL without its user name, password, query (signatures and tokens of signed URLs) and
        fragment; or the beginning of the `data:` URI.
    """
    if is_data_uri(source):
        media_type = re.match(r"[\w/.+-]{0,60}", source[5:])
        return f"data:{media_type[0] if media_type else ''}"
    scheme = _SCHEME.match(source.lstrip())
    if scheme is None:
        return source if len(source) <= _MAX_NAME_LENGTH else f"{source[:_MAX_NAME_LENGTH]}..."
    address = source.lstrip()[scheme.end() :]
    authority = re.split(r"[/?#]", address)[0]
    if "@" in authority:
        address = address[authority.rindex("@") + 1 :]
    elif not _HOST_AND_PORT.fullmatch(authority):
        # The password contains "/", "?" or "#", which should have been escaped.
        address = address.rpartition("@")[2]
    path = re.split(r"[?#]", address)[0]
    return f"{scheme[0]}{path[:_MAX_NAME_LENGTH]}{'?...' if '?' in address else ''}"


def read_data_uri(uri: str, limits: AudioLimits) -> bytes:
    """
    Decodes the audio of a `data:` URI, such as `data:audio/wav;base64,UklGR...`.

    Args:
        uri (`str`): The URI; white space, escapes (`%2B`) and the URL-safe alphabet are accepted.
        limits ([`AudioLimits`]): The size of the content is checked before it is decoded.

    Raises:
        LimitError: The content is larger than `max_bytes`.
        ValueError: The content is not base64.
    """
    name = display_name(uri)
    header, comma, payload = uri.partition(",")
    if not comma or not header.lower().rstrip().endswith(";base64"):
        raise ValueError(f"{name}: the data URI is not in base64. Expected data:audio/wav;base64,... or the like.")
    check_size(len(payload) * 3 // 4 - 2, name, limits)
    content = unquote_to_bytes(payload) if "%" in payload else payload.encode(errors="replace")
    content = b"".join(content.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
    try:
        return base64.b64decode(content + b"=" * (-len(content) % 4), validate=True)
    except binascii.Error as error:
        raise ValueError(f"{name}: the data URI is not valid base64 ({error}). Encode the audio again.") from error
