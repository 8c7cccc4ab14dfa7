"""The `peft-listen` command. Each sub-command is a file with a `HELP`, its arguments, and what to do with them."""

import argparse
import io
import sys
from collections.abc import Sequence

from .. import __version__
from . import ask, convert_beats, data, report


COMMANDS = {"ask": ask, "convert-beats": convert_beats, "data": data, "report": report}


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command and all its sub-commands; `arguments.run(arguments)` runs the one that was chosen."""
    parser = argparse.ArgumentParser(prog="peft-listen", description="A text LLM that hears.")
    parser.add_argument("--version", action="version", version=f"peft-listen {__version__}")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        module.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments; those of the process if not given.

    Returns:
        `int`, the exit code: 0 if all is well, 1 if a check found problems, 2 for wrong arguments or bad input, which is
        explained on stderr.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the console's encoding lacks are escaped, and do not end the output.
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        exit_code: int = arguments.run(arguments)
    except (OSError, ValueError, ImportError) as error:
        print(f"peft-listen: error: {error}", file=sys.stderr)
        return 2
    return exit_code
