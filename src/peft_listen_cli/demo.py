"""`peft-listen demo`: opens a page on which a model is asked about clips."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from .argument_types import add_address, add_placement, allowed_hosts, positive_integer, positive_number


if TYPE_CHECKING:
    from peft_listen.page import TaskShares
    from peft_listen.serving import ServedModels


HELP = "Open a page on which a model is asked about clips, and which shows the prompts that it selects."
EPILOG = """\
Start it, and open the address that it prints:

  peft-listen demo my-adapter

A clip is recorded, dropped or picked, and a second answer may be shown beside the first: that of the model without the
adapter, with another number of prompts, or of another adapter of the same base model:

  peft-listen demo dogs=runs/dogs/model cats=runs/cats/model

With recorded selections, the page shows which tasks usually select a prompt. It finds those of a run of `peft-listen train`,
and the file selections.safetensors in the folder of another adapter, or reads the file of --records:

  peft-listen report my-adapter test.jsonl --save-records my-adapter/selections.safetensors

The page listens on this machine only, asks no other server for anything, and has no password: whoever reaches the address
that --host names can ask the model. It is reached by an IP address, localhost, or a name given with --host or --allowed-host.

The exit code is 0 if the page was stopped by Ctrl-C, 143 after SIGTERM, 129 after SIGHUP (the terminal was closed), and 2 after
an error, such as an address that is in use.
"""

# Signals that would end the process before its temporary folder is removed. Windows has no SIGHUP.
_ENDING_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    parser.add_argument(
        "model",
        nargs="+",
        metavar="[NAME=]MODEL",
        help="folder or Hub name of a model, with audio or without, or of an adapter (default for NAME: that of the folder, or "
        "of the run's folder)",
    )
    parser.add_argument(
        "--records",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="selections of an adapter, written by `report --save-records`; NAME is needed with several adapters",
    )
    parser.add_argument(
        "--data", metavar="FILE", help="data file whose tasks become buttons, and whose clips can be picked"
    )
    add_address(parser, 7860, "another name by which browsers reach the page; may be given several times")
    parser.add_argument(
        "--max-new-tokens",
        type=positive_integer,
        default=128,
        metavar="N",
        help="longest answer in tokens (default: 128)",
    )
    parser.add_argument(
        "--max-audio-seconds", type=positive_number, default=60, metavar="S", help="longest clip (default: 60)"
    )
    parser.add_argument(
        "--max-upload-mb", type=positive_number, default=25, metavar="MB", help="largest file of a clip (default: 25)"
    )
    parser.add_argument(
        "--timeout",
        type=positive_number,
        default=120,
        metavar="S",
        help="seconds after which an answer is ended (default: 120)",
    )
    add_placement(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.page import Answering, PageSettings, create_page, find_words, read_tasks
    from peft_listen.serving import AppServer, QuietProtocol, address_of, bind, host_names, load_models, name_models

    settings = PageSettings(
        max_new_tokens=arguments.max_new_tokens,
        max_audio_seconds=arguments.max_audio_seconds,
        max_upload_bytes=int(arguments.max_upload_mb * (1 << 20)),
        timeout=arguments.timeout,
    )
    # Names, files and address are checked first, since loading the model may take minutes.
    hosts = host_names(allowed_hosts(arguments))
    paths = name_models(arguments.model)
    files = _record_files(paths, arguments.records)
    tasks = None if arguments.data is None else read_tasks(arguments.data)
    sock = bind(arguments.host, arguments.port)
    with sock, _cleans_up(), tempfile.TemporaryDirectory(prefix="peft-listen-") as folder:
        models = load_models(arguments.model, arguments.dtype, arguments.device, accepts_text_models=True)
        shares = _shares(models, files)
        words = {name: found for name in paths if (found := find_words(models, name)) is not None}
        answering = Answering(models, settings, shares, words)
        app = create_page(answering, folder, tasks)

        def announce() -> None:
            print(f"Open {address_of(sock)} in a browser. Ctrl-C stops the page.", flush=True)

        try:
            AppServer(app, sock, announce, allowed_hosts=hosts, protocol=QuietProtocol).run()
        except KeyboardInterrupt:
            print("peft-listen: stopped", file=sys.stderr)
    return 0


@contextmanager
def _cleans_up() -> Iterator[None]:
    """Turns signals that would end the process at once into an exit, which removes temporary folders before."""
    with ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():  # no other thread may set handlers
            for number in _ENDING_SIGNALS:
                # `nohup` ignores SIGHUP, which then must not end the page.
                if signal.getsignal(number) is signal.SIG_DFL:
                    stack.callback(signal.signal, number, signal.signal(number, _exit))
        yield


def _exit(number: int, frame: Any) -> NoReturn:
    raise SystemExit(128 + number)  # the exit code that shells give to a process that a signal has ended


def _record_files(paths: Mapping[str, str], given: Sequence[str]) -> dict[str, str]:
    """The file with the recorded selections of each model that has one."""
    from peft_listen.page import find_records

    files = {name: file for name, path in paths.items() if (file := find_records(path)) is not None}
    for argument in given:
        name, separator, file = argument.partition("=")
        if not separator and len(paths) == 1:
            (name,), file = paths, argument
        if name not in paths or not file:
            raise ValueError(
                f"--records {argument}: expected NAME=FILE with one of the names {', '.join(paths)}, whose selections the "
                "file has."
            )
        files[name] = file
    return files


def _shares(models: ServedModels, files: Mapping[str, str]) -> dict[str, TaskShares]:
    from peft_listen.page import load_task_shares

    return {name: load_task_shares(file, models, name) for name, file in files.items()}
