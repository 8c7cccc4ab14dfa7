"""Data files for training and evaluation: their schema, reading and checking."""

from .schema import Example, Problem, check_examples, read_examples


__all__ = ["Example", "Problem", "check_examples", "read_examples"]
