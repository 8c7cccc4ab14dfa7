"""Settings of the server."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..setting_types import check_limits
from .host_check import host_names


@dataclass(frozen=True)
class ServerSettings:
    """
    Limits of the server. They hold for each request, whatever it asks for.

    Args:
        max_new_tokens (`int`, defaults to 256):
            Longest answer in tokens, and the length if a request does not name one.
        batch_size (`int`, defaults to 8):
            Number of waiting requests that are answered at once.
        max_requests (`int`, defaults to 64):
            Number of requests that are read, wait or run at the same time. Further ones are refused with the status 429.
        max_connections (`int`, defaults to 256):
            Number of open connections, idle ones included. Further ones are closed at once.
        max_request_bytes (`int`, defaults to 25 MiB):
            Largest body of a request. Base64 takes four bytes for three of audio.
        max_audio_seconds (`float`, defaults to 600.0):
            Longest audio of a request, all clips together.
        max_clips (`int`, defaults to 32):
            Largest number of clips of a request. Encoders pad clips, so that the features of a short one, which has
            hundreds of bytes, may take a megabyte.
        max_text_characters (`int`, defaults to 200000):
            Longest text of a request, all messages together. Its tokens are counted by the thread that answers all requests.
        timeout (`float`, defaults to 120.0):
            Seconds within which a request must be read, wait and be answered.
        api_key (`str`, *optional*):
            If given, requests must have the header `Authorization: Bearer <api_key>`.
        allowed_hosts (`Sequence[str]`, *optional*):
            Names by which clients reach a [`Server`] without a key, in addition to `localhost` and IP addresses. Requests for
            another host are refused, because a web page of another site may have sent them.

    Raises:
        ValueError: A value is not a number above 0, or not a whole one where it counts something; the key is empty; or a host
            is not a name.
    """

    max_new_tokens: int = 256
    batch_size: int = 8
    max_requests: int = 64
    max_connections: int = 256
    max_request_bytes: int = 25 << 20
    max_audio_seconds: float = 600.0
    max_clips: int = 32
    max_text_characters: int = 200_000
    timeout: float = 120.0
    api_key: str | None = None
    allowed_hosts: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_limits(self)
        if self.api_key is not None and not self.api_key.strip():
            raise ValueError("ServerSettings: `api_key` is empty. Leave it out, or choose a key.")
        host_names(self.allowed_hosts, "ServerSettings: `allowed_hosts` (`--allowed-host`)")
