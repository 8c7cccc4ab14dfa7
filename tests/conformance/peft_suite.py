"""PEFT's own tests, imported from the source distribution of the installed version."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType

import pytest

from tests.conformance.source_distribution import TestsUnavailableError, obtain_tests


PACKAGE = "peft_own_tests"


def load(name: str) -> ModuleType:
    """
    One of the modules of PEFT's tests.

    Raises:
        TestsUnavailableError: if they cannot be had.
    """
    if PACKAGE not in sys.modules:
        # Its modules import one another relatively, so they need a package; PEFT's has no `__init__.py`.
        package = ModuleType(PACKAGE)
        package.__path__ = [str(obtain_tests("peft"))]
        pytest.register_assert_rewrite(PACKAGE)
        sys.modules[PACKAGE] = package
    # PEFT's tests import diffusers for a check of the type of image pipelines, of which there are none here.
    absent = "diffusers" not in sys.modules and importlib.util.find_spec("diffusers") is None
    if absent:
        diffusers = ModuleType("diffusers")
        diffusers.StableDiffusionPipeline = type("StableDiffusionPipeline", (), {})  # type: ignore[attr-defined]
        sys.modules["diffusers"] = diffusers
    try:
        return importlib.import_module(f"{PACKAGE}.{name}")
    finally:
        if absent:
            del sys.modules["diffusers"]


def load_or_skip(name: str) -> ModuleType:
    """The same for a module of tests, which is skipped with the reason if there is nothing to run."""
    try:
        return load(name)
    except TestsUnavailableError as error:
        pytest.skip(f"PEFT's own tests are not here: {error}", allow_module_level=True)
