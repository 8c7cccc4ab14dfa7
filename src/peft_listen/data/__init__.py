"""Training and test data in one schema."""

from .schema import Example, Problem, check_examples, read_examples


__all__ = ["Example", "Problem", "check_examples", "read_examples"]
