"""`peft-listen data`: commands for data files."""

import argparse


HELP = "Check data files (JSON lines with audio, instruction, answer and task)."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    text = "Check a data file and every clip that it names. The exit code is 1 if there are problems."
    check = subparsers.add_parser("check", help=text, description=text)
    check.add_argument("file", help="the data file")
    check.add_argument(
        "--audio-token",
        metavar="TOKEN",
        help="audio token of the processor, which no text may contain (default: <|audio|>)",
    )
    check.set_defaults(run=run_check)


def run_check(arguments: argparse.Namespace) -> int:
    from peft_listen.data import check_examples

    token = {} if arguments.audio_token is None else {"audio_token": arguments.audio_token}
    problems = check_examples(arguments.file, show_progress=True, **token)
    for problem in problems:
        print(f"{arguments.file}, {problem}")
    print(f"{arguments.file}: {len(problems) or 'no'} problem{'' if len(problems) == 1 else 's'}")
    return 1 if problems else 0
