"""Argument types and arguments that several sub-commands use."""

import argparse
import math


# Values of `--dtype`: names of torch's dtypes, and "auto" for that of the checkpoint.
DTYPES = ("auto", "float32", "bfloat16", "float16")


def positive_integer(text: str) -> int:
    """An integer of at least 1, for `add_argument(type=...)`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def positive_number(text: str) -> float:
    """A number above 0 and not infinite, for `add_argument(type=...)`."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text}")
    return number


def port_number(text: str) -> int:
    """A port of TCP, or 0, for `add_argument(type=...)`."""
    number = int(text)
    if not 0 <= number < 1 << 16:
        raise argparse.ArgumentTypeError(f"must be from 0 to 65535, got {text}")
    return number


def add_placement(parser: argparse.ArgumentParser) -> None:
    """Adds `--dtype` and `--device`, as `load_pipeline` takes them."""
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="data type of the model; auto is that of the checkpoint (default: float32 on a CPU, auto elsewhere)",
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps, ... (default: the accelerator, if there is one)")


def add_address(parser: argparse.ArgumentParser, port: int, what: str) -> None:
    """Adds `--host`, `--port` and `--allowed-host` for a server."""
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)"
    )
    parser.add_argument(
        "--port", type=port_number, default=port, help=f"port to listen on; 0 takes a free one (default: {port})"
    )
    parser.add_argument("--allowed-host", action="append", default=[], metavar="NAME", help=what)


def allowed_hosts(arguments: argparse.Namespace) -> list[str]:
    """
    The names of a server with the arguments of `add_address`.

    Raises:
        ValueError: The address to listen on cannot be one.
    """
    from peft_listen.serving import host_names

    if ":" in arguments.host:  # an address of IPv6, or what cannot be listened on
        return list(arguments.allowed_host)
    try:
        host_names([arguments.host])
    except ValueError:
        raise ValueError(
            f"`--host` must be an address or a name of this machine, such as 127.0.0.1, got {arguments.host!r}. Names by which "
            "others reach it are for `--allowed-host`, and the port is for `--port`."
        ) from None
    return [*arguments.allowed_host, arguments.host]
