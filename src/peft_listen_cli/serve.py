"""`peft-listen serve`: answers questions about audio over HTTP, with OpenAI's API."""

from __future__ import annotations

import argparse
import os
import sys

from .argument_types import add_address, add_placement, allowed_hosts, positive_integer, positive_number


HELP = "Serve a model, or several adapters of one base model, with OpenAI's API."
EPILOG = """\
Start it, and ask it from another shell:

  peft-listen serve my-adapter
  curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" -d '{"model": "my-adapter", "messages":
    [{"role": "user", "content": "What is the capital of France?"}]}'

Clips are parts of messages, in base64: {"type": "input_audio", "input_audio": {"data": "UklGR...", "format": "wav"}}, as
OpenAI's clients send them. A request cannot make the server open a file or an address.

The base model of several adapters is loaded once, and the field "model" of a request selects one of them:

  peft-listen serve dogs=runs/dogs/model cats=runs/cats/model

The server listens on this machine only. To let others use it, choose an address with --host, set the variable
PEFT_LISTEN_API_KEY to a key that their requests must have, and put a server with TLS in front of it. Without a key, requests
must name the server by an IP address, localhost, or a name given with --host or --allowed-host.

The exit code is 0 if the server was stopped by Ctrl-C, and 2 after an error, such as an address that is in use.
"""
API_KEY = "PEFT_LISTEN_API_KEY"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "model",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="folder or Hub name of a model with audio, or of an adapter for one (default for NAME: that of the folder, or of "
        "the run's folder)",
    )
    add_address(
        parser, 8000, "without a key, another name by which clients reach the server; may be given several times"
    )
    parser.add_argument(
        "--max-new-tokens",
        type=positive_integer,
        default=256,
        metavar="N",
        help="longest answer in tokens, and its length if a request does not name one (default: 256)",
    )
    parser.add_argument(
        "--batch-size",
        type=positive_integer,
        default=8,
        metavar="N",
        help="waiting requests that are answered at once (default: 8)",
    )
    parser.add_argument(
        "--max-requests",
        type=positive_integer,
        default=64,
        metavar="N",
        help="requests in progress; further ones are refused with the status 429 (default: 64)",
    )
    parser.add_argument(
        "--max-connections",
        type=positive_integer,
        default=256,
        metavar="N",
        help="open connections; further ones are closed (default: 256)",
    )
    parser.add_argument(
        "--max-request-mb",
        type=positive_number,
        default=25,
        metavar="MB",
        help="largest request, of which three quarters are audio (default: 25)",
    )
    parser.add_argument(
        "--max-audio-seconds",
        type=positive_number,
        default=600,
        metavar="S",
        help="longest audio of a request, all clips together (default: 600)",
    )
    parser.add_argument(
        "--max-clips",
        type=positive_integer,
        default=32,
        metavar="N",
        help="clips of a request (default: 32)",
    )
    parser.add_argument(
        "--max-text-characters",
        type=positive_integer,
        default=200_000,
        metavar="N",
        help="characters of all texts of a request (default: 200000)",
    )
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=120,
        metavar="S",
        help="seconds until a request is given up, with waiting (default: 120)",
    )
    add_placement(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.serving import Server, ServerSettings, bind, load_models, url_of

    settings = ServerSettings(
        max_new_tokens=arguments.max_new_tokens,
        batch_size=arguments.batch_size,
        max_requests=arguments.max_requests,
        max_connections=arguments.max_connections,
        max_request_bytes=int(arguments.max_request_mb * (1 << 20)),
        max_audio_seconds=arguments.max_audio_seconds,
        max_clips=arguments.max_clips,
        max_text_characters=arguments.max_text_characters,
        timeout=arguments.timeout,
        api_key=os.environ.get(API_KEY),
        allowed_hosts=allowed_hosts(arguments),
    )
    # The address is reserved first, since loading the model may take minutes.
    sock = bind(arguments.host, arguments.port)
    with sock:
        models = load_models(arguments.model, arguments.dtype, arguments.device)

        def announce() -> None:
            print(f"Serving {', '.join(models.names)} at {url_of(sock)}", flush=True)

        try:
            Server(models, sock, settings, announce).run()
        except KeyboardInterrupt:
            print("peft-listen: stopped", file=sys.stderr)
    return 0
