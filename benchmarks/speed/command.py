"""What the commands have in common: options, and their report on the terminal and in a Markdown file."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks.markdown import with_texts, write_texts
from peft_listen.files import check_output_file

from .ratios import CLOCKS, describe_machine


DTYPES = ("float32", "bfloat16", "float16")
CLOCK_NAMES = {"wall": "wall time", "cpu": "CPU time"}


def add_options(
    parser: argparse.ArgumentParser, name: str, *, dtype: str = "float32", with_clock: bool = True
) -> None:
    """
    Adds the options that all commands have.

    Args:
        parser (`argparse.ArgumentParser`)
        name (`str`): module of the command, and the name of its table.
        dtype (`str`, defaults to `"float32"`): default of `--dtype`.
        with_clock (`bool`, defaults to `True`): whether the command measures time.
    """
    parser.set_defaults(command=name)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, default=dtype)
    parser.add_argument("--threads", type=int, help="CPU threads")
    if with_clock:
        parser.add_argument(
            "--clock",
            choices=CLOCKS,
            default="wall",
            help="cpu: CPU time, for one thread on a machine that others use too",
        )
    parser.add_argument("--write", type=Path, help="Markdown file with markers, such as docs/speed.md")
    parser.add_argument(
        "--table",
        default=name,
        help="name of the table in this file: <!-- NAME, DEVICE: begin --> (default: %(default)s)",
    )


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parses the command line, checks it before anything is measured, and sets the number of threads."""
    arguments = parser.parse_args()
    if getattr(arguments, "clock", None) == "cpu" and torch.device(arguments.device).type != "cpu":
        parser.error(f"--clock cpu does not measure the time on {arguments.device}; leave it out")
    if arguments.threads is not None:
        if arguments.threads < 1:
            parser.error(f"--threads must be at least 1, got {arguments.threads}")
        torch.set_num_threads(arguments.threads)
    if arguments.write is not None:
        check_output_file(arguments.write)
        try:
            with_texts(arguments.write.read_text(encoding="utf-8"), {_table_name(arguments): ""})
        except (OSError, ValueError) as error:
            parser.error(f"--write {arguments.write}: {error}")
    return arguments


def turn_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The arguments of [`time_in_turns`] that the command line determines."""
    names = ("repeats", "warm_up", "device", "clock")
    return {name: getattr(arguments, name) for name in names}


def describe(arguments: argparse.Namespace) -> str:
    """Machine, versions, data type and clock."""
    text = f"{arguments.dtype}; {describe_machine(arguments.device)}"
    if "clock" in arguments:
        text += f"; {CLOCK_NAMES[arguments.clock]}"
    return text if torch.device(arguments.device).type == "cuda" else f"{text}; not run on a GPU"


def report(
    arguments: argparse.Namespace, machine: str, setting: str, *tables: str, command: str | None = None
) -> None:
    """
    Prints what was measured, and writes it to the file of `--write` together with the command line.

    Args:
        arguments (`argparse.Namespace`): the command line, from [`parse`].
        machine (`str`): from [`describe`].
        setting (`str`): sizes and numbers of what was measured.
        tables (`str`): in Markdown.
        command (`str`, *optional*): the command line that measured them, if it is not the present one; `""` to leave it out.
    """
    text = "\n\n".join([f"{machine}. {setting}", *tables])
    print(f"\n{text}", flush=True)
    if arguments.write is not None:
        command = command_line(arguments.command) if command is None else command
        block = f"```bash\n{command}\n```\n\n" if command else ""
        write_texts(arguments.write, {_table_name(arguments): block + text})


def command_line(name: str) -> str:
    """The command that runs now, without the options that say where the table is written."""
    words, skip = [], False
    for word in sys.argv[1:]:
        is_output = word.split("=")[0] in ("--write", "--table")
        if not is_output and not skip:
            words.append(word)
        skip = is_output and "=" not in word
    return shlex.join(["python", "-m", f"benchmarks.speed.{name}", *words])


def _table_name(arguments: argparse.Namespace) -> str:
    return f"{arguments.table}, {torch.device(arguments.device).type}"
