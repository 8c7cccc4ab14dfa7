"""Errors of a Hub that cannot be reached as errors that say so, and what to do instead."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants

# The library of `huggingface_hub` for HTTP, whose error this is, depends on the version.
from huggingface_hub.errors import (
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
)


class HubConnectionError(ConnectionError):
    """
    The Hub cannot be reached.

    Args:
        problem (`str`): what cannot be reached and why, as a sentence.
        advice (`str`): what to do without the Hub, as a sentence.
    """

    def __init__(self, problem: str, advice: str) -> None:
        super().__init__(f"{problem} {advice}")
        self.problem, self.advice = problem, advice

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process raises it again: the constructor takes other arguments than the message.
        return type(self), (self.problem, self.advice)


@contextmanager
def hub_connection(advice: str) -> Iterator[None]:
    """
    Explains the errors that are raised where the Hub cannot be reached. Its own answers, such as a refused upload, stay as they
    are. Within another `hub_connection`, the outer one's advice is given, since its caller knows what else there is.

    Args:
        advice (`str`): what to do without the Hub, as a sentence.

    Raises:
        ConnectionError: if the Hub cannot be reached; the message has its address and the reason.
    """
    try:
        yield
    except HubConnectionError as error:
        raise HubConnectionError(error.problem, advice) from None
    except HfHubHTTPError:
        raise
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        # Not `from error`: the traceback of the client fills a screen and says nothing more.
        raise HubConnectionError(
            f"The Hub at {constants.ENDPOINT} cannot be reached: {reason}. Check the network, `HF_ENDPOINT` and "
            "`HF_HUB_OFFLINE`.",
            advice,
        ) from None
