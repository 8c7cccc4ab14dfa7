"""The address of a server, which is reserved before its model is loaded."""

import re

import pytest
from starlette.applications import Starlette

from peft_listen.serving import AppServer, bind


def test_an_address_that_another_server_has_taken_since_it_was_reserved():
    with bind("127.0.0.1", 0) as first:
        host, port = first.getsockname()
        message = re.escape(f"The server cannot listen on {host}, port {port}: Address already in use.")
        with pytest.raises(OSError, match=message):
            # On Linux, it can still be reserved, and the second server starts.
            second = bind(host, port)
            first.listen()
            AppServer(Starlette(), second).run()


def test_an_address_that_is_in_use_cannot_be_reserved():
    with bind("127.0.0.1", 0) as first:
        host, port = first.getsockname()
        first.listen()
        with pytest.raises(OSError, match=f"cannot listen on {host}, port {port}: Address already in use"):
            bind(host, port)
