"""Errors of requests, in the form of OpenAI's API."""

from typing import Any


class RequestError(Exception):
    """
    A request that is answered with an error.

    Args:
        message (`str`): What was wrong, what was expected and what to do; the client gets it.
        status (`int`, defaults to 400): Status code of HTTP.
        param (`str`, *optional*): The field of the request, such as `messages[0].content`.
        code (`str`, *optional*): A name of the error for programs.
        is_temporary (`bool`, *optional*, defaults to `False`): Whether the client should try again later.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        param: str | None = None,
        code: str | None = None,
        is_temporary: bool = False,
    ) -> None:
        super().__init__(message)
        self.message, self.status, self.param, self.code = message, status, param, code
        self.is_temporary = is_temporary

    @property
    def body(self) -> dict[str, Any]:
        """The JSON object with which the request is answered."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def timeout_error() -> RequestError:
    """The error of a request whose time is over."""
    return RequestError(
        "The request was not answered in time. Send shorter audio or ask for a shorter answer, or try again when the server "
        "has less to do.",
        status=504,
        code="timeout",
    )
