"""
transformers' own mixins of tests, imported from the source distribution of the installed version.

What they import beside, of folders that are not in it, is replaced by the names below. None of those is a test.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import transformers

from tests.conformance.source_distribution import TestsUnavailableError, obtain_tests


PACKAGE = "transformers_own_tests"
# The mixins that others derive from although the source distribution lacks them.
ABSENT_MIXINS = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}
# What every configuration takes, each with a value other than its default.
COMMON_CONFIG_ARGUMENTS = {
    "architectures": ["SomeModel"],
    "chunk_size_feed_forward": 3,
    "dtype": "float16",
    "id2label": {0: "speech"},
    "is_encoder_decoder": True,
    "label2id": {"speech": 0},
    "output_hidden_states": True,
    "problem_type": "regression",
    "return_dict": False,
}


def load(name: str) -> types.ModuleType:
    """
    One of the modules of transformers' tests.

    Raises:
        TestsUnavailableError: if they, or what they need, cannot be had.
    """
    for distribution, module in (("parameterized", "parameterized"), ("pillow", "PIL")):
        if importlib.util.find_spec(module) is None:
            raise TestsUnavailableError(f'they need {distribution}; `pip install "peft-listen[dev]"`')
    if PACKAGE not in sys.modules:
        _make_package(obtain_tests("transformers"))
    with _surroundings():
        return importlib.import_module(f"{PACKAGE}.{name}")


def load_or_skip(name: str) -> types.ModuleType:
    """The same for a module of tests, which is skipped with the reason if there is nothing to run."""
    try:
        return load(name)
    except TestsUnavailableError as error:
        pytest.skip(f"transformers' own tests are not here: {error}", allow_module_level=True)


def _make_package(folder: Path) -> None:
    pytest.register_assert_rewrite(PACKAGE)
    _add_module(PACKAGE, __path__=[str(folder)])
    for name, mixin in ABSENT_MIXINS.items():
        parent, _, child = name.partition(".")
        _add_module(f"{PACKAGE}.{parent}", __path__=[])
        _add_module(f"{PACKAGE}.{parent}.{child}", **{mixin: type(mixin, (), {})})
    _add_module(f"{PACKAGE}.utils", __path__=[])
    _add_module(f"{PACKAGE}.utils.test_configuration_utils", config_common_kwargs=COMMON_CONFIG_ARGUMENTS)
    # It finds the files that transformers' CI keeps in place of the Hub.
    _add_module("fetch_hub_objects_for_ci", url_to_local_path=lambda url: url)


def _add_module(name: str, **attributes: Any) -> None:
    module = types.ModuleType(name)
    vars(module).update(attributes)
    sys.modules[name] = module


@contextmanager
def _surroundings() -> Iterator[None]:
    """What the modules find where they are at home."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The list of the small models on the Hub that pipelines are tested with.
        reports = Path(folder) / "reports"
        reports.mkdir()
        (reports / "tiny_model_summary.json").write_text(json.dumps({}))
        # Marks of transformers' own test runs.
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)
        with (
            patch.dict(os.environ, {"TRANSFORMERS_TINY_MODEL_PATH": folder}),
            # The package is imported already, and its sources are not beside the tests.
            patch("transformers.utils.direct_transformers_import", lambda path: transformers),
            # transformers reads audio with librosa, this project with soundfile: its tests can do without librosa.
            patch("transformers.testing_utils.is_librosa_available", lambda: True),
        ):
            yield
