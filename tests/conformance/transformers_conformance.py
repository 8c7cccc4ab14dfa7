"""How transformers' mixins are run: every test passes, or is declared not to apply, or wants hardware that is absent."""

from __future__ import annotations

import contextlib
import functools
import unittest
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch

from tests.conformance.transformers_applicability import NEEDS, NOT_APPLICABLE


@dataclass(frozen=True)
class Suite:
    """
    The tests of transformers' mixins for one kind of model, processor or pipeline.

    Attributes:
        name: What they are run for.
        test_class: The class that holds them.
        tests: Name of each test, and the mixin that it comes from.
        originals: The tests that are declared not to apply, as they are in the mixin.
    """

    name: str
    test_class: type[unittest.TestCase]
    tests: dict[str, str]
    originals: dict[str, Callable[..., Any]]


SUITES: dict[str, Suite] = {}


class ConformanceSetUp:
    """
    To stand before the mixins of a test case: the same numbers in every run, and no time spent on what is not tested.
    """

    addCleanup: Callable[..., Any]  # noqa: N815

    def setUp(self) -> None:
        super().setUp()  # type: ignore[misc]
        torch.manual_seed(0)
        # The mixins print tensors into messages that nobody reads unless a test fails.
        self.addCleanup(torch.set_printoptions, profile="default")
        torch.set_printoptions(threshold=1, edgeitems=1)

    def start(self, patcher: Any) -> None:
        """Lets a patch of `unittest.mock` last as long as the test."""
        patcher.start()
        self.addCleanup(patcher.stop)

    @contextlib.contextmanager
    def subTest(self, *args: Any, **kwargs: Any) -> Iterator[None]:  # noqa: N802
        # A report for each of thousands of parameters would take more time than the tests.
        yield


def conforms(name: str, slow: tuple[str, ...] = ()) -> Callable[[type], type]:
    """
    Class decorator: makes a test case with mixins of transformers strict. What does not apply is skipped with the
    reason that was declared; a test that skips itself without being declared fails.

    Args:
        name: What the tests are run for, as in `transformers_applicability.py`.
        slow: Patterns of tests that take too long for every run.
    """

    def decorate(test_class: type) -> type:
        suite = Suite(name, test_class, {}, {})
        for test in sorted(dir(test_class)):
            original = getattr(test_class, test)
            if not test.startswith("test_") or not callable(original):
                continue
            suite.tests[test] = origin(test_class, test)
            if (reason := why_not_applicable(name, test)) is not None:
                suite.originals[test] = original
                setattr(test_class, test, _skipped(original, reason))
            elif why_needed(test) is None:
                setattr(test_class, test, _strict(original))
            if any(fnmatchcase(test, pattern) for pattern in slow):
                setattr(test_class, test, pytest.mark.slow(getattr(test_class, test)))
        SUITES[name] = suite
        return test_class

    return decorate


def origin(test_class: type, test: str) -> str:
    """Name of the mixin that defines a test; that of `test_class` for a test of its own."""
    return next(base for base in reversed(test_class.__mro__) if test in vars(base)).__name__


def why_not_applicable(suite: str, test: str) -> str | None:
    return next(
        (
            reason
            for (suites, tests), reason in NOT_APPLICABLE.items()
            if fnmatchcase(suite, suites) and fnmatchcase(test, tests)
        ),
        None,
    )


def why_needed(test: str) -> str | None:
    return next((needed for tests, needed in NEEDS.items() if fnmatchcase(test, tests)), None)


def _skipped(original: Callable[..., Any], reason: str) -> Callable[..., Any]:
    @unittest.skip(reason)
    def test(self: unittest.TestCase) -> None: ...

    test.__doc__ = original.__doc__
    return test


def _strict(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def test(self: unittest.TestCase, *args: Any) -> None:
        try:
            if getattr(original, "__unittest_skip__", False):
                self.skipTest(original.__unittest_skip_why__)  # type: ignore[attr-defined]
            original(self, *args)
        except (unittest.SkipTest, pytest.skip.Exception) as skipped:
            self.fail(f"It skips itself: {skipped}. If it does not apply, say why in transformers_applicability.py.")

    # pytest follows the one to nothing where `parameterized` made the test, and would skip because of the other.
    for attribute in ("__wrapped__", "__unittest_skip__"):
        vars(test).pop(attribute, None)
    return test
