"""Data files for training and evaluation: their schema, reading and checking."""

from ..rows import clips_of
from .bad_clips import find_bad_clips
from .schema import Example, Prediction, Problem, check_examples, read_examples, read_predictions


__all__ = [
    "Example",
    "Prediction",
    "Problem",
    "check_examples",
    "clips_of",
    "find_bad_clips",
    "read_examples",
    "read_predictions",
]
