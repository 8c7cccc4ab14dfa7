"""`peft-listen data`: about data files."""

import argparse

from ..data import check_examples


HELP = "Work with data files (JSON lines of audio, instruction, answer and task)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "Check a data file and every clip it names; exit with 1 if something is wrong."
    check = subparsers.add_parser("check", help=text, description=text)
    check.add_argument("file", help="the data file")
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    problems = check_examples(arguments.file, show_progress=True)
    for problem in problems:
        print(f"{arguments.file}, {problem}")
    print(f"{arguments.file}: {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0
