"""`peft-listen convert-beats`: converts an original BEATs checkpoint into a folder for `from_pretrained`."""

import argparse


HELP = "Convert an original BEATs checkpoint (microsoft/unilm) into a folder for BeatsModel.from_pretrained."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", help="the original .pt file")
    parser.add_argument("output_dir", help="folder to create")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from peft_listen.models.beats.convert_beats_original_checkpoint import convert_beats_checkpoint

    folder = convert_beats_checkpoint(arguments.checkpoint, arguments.output_dir)
    print(f"Wrote {folder}")
    return 0
