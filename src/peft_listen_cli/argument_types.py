"""Argument types that several sub-commands use."""

import argparse


def positive_integer(text: str) -> int:
    """An integer of at least 1, for `add_argument(type=...)`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number
