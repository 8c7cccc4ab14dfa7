"""The `peft-listen` command. Each sub-command is a file with its help text, its arguments and the function that runs it.

The command is a package separate from `peft_listen` because importing `peft_listen` registers the tuner, which imports
torch and transformers. Sub-commands import them only when they run, which keeps `--help` and `--version` fast.
"""

import argparse
import importlib.metadata
import io
import platform
import sys
from collections.abc import Sequence
from typing import Any

from . import ask, cache_features, compare, convert_beats, data, demo, evaluate, predict, prepare, report, serve, train
from .library_messages import hide_missing_kernel


COMMANDS = {
    "ask": ask,
    "cache-features": cache_features,
    "compare": compare,
    "convert-beats": convert_beats,
    "data": data,
    "demo": demo,
    "evaluate": evaluate,
    "predict": predict,
    "prepare": prepare,
    "report": report,
    "serve": serve,
    "train": train,
}
REPORTED_VERSIONS = ("peft-listen", "torch", "transformers", "peft", "accelerate", "trl")


class _ShowVersions(argparse.Action):
    """Prints the versions that a bug report needs, without importing any of the libraries."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        for name in REPORTED_VERSIONS:
            try:
                print(name, importlib.metadata.version(name))
            except importlib.metadata.PackageNotFoundError:
                print(name, "not installed")
        print("python", platform.python_version())
        parser.exit()


class _Parser(argparse.ArgumentParser):
    """
    A parser of a sub-command. Where the options are dataclasses, the sub-command's own `parse` reads the arguments, so that
    what it imports is imported when it is selected.
    """

    module: Any = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if not hasattr(self.module, "parse"):
            return super().parse_known_args(args, namespace)
        return self.module.parse(self.prog, args), []


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command and its sub-commands; `arguments.run(arguments)` runs the selected one."""
    parser = argparse.ArgumentParser(prog="peft-listen", description="A text LLM that understands audio.")
    parser.add_argument(
        "--version", action=_ShowVersions, nargs=0, help="show the versions of this and related packages and exit"
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)
    for name, module in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=module.HELP, description=module.HELP)
        subparser.module = module
        if hasattr(module, "add_arguments"):
            module.add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Runs the command.

    Args:
        argv (`Sequence[str]`, *optional*): The arguments. If not given, those of the process.

    Returns:
        `int`, the exit code: 0 for success, 1 if a check found problems, 2 for wrong arguments or bad input, with an
        explanation on stderr, 130 after Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Characters that the console's encoding lacks are escaped instead of ending the output.
            stream.reconfigure(errors="backslashreplace")
    hide_missing_kernel()
    arguments = None
    try:
        arguments = build_parser().parse_args(argv)
        exit_code: int = arguments.run(arguments)
    except (OSError, ValueError, ImportError) as error:
        print(f"peft-listen: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        name = next(iter(sys.argv[1:] if argv is None else argv), "")
        # The same command with --overwrite would begin again.
        overwrites = getattr(getattr(arguments, "options", None), "overwrite", False)
        continues = getattr(COMMANDS.get(name), "CONTINUES", False) and not overwrites
        advice = " The same command continues." if continues else ""
        print(f"peft-listen: interrupted.{advice}", file=sys.stderr)
        return 130
    return exit_code
