"""Writes `tests/conformance/transformers_conformance.md`, which lists the transformers tests that run here and those that
do not apply: `python -m tests.conformance.transformers_table`."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
from pathlib import Path

import pytest

from tests.conformance.source_distribution import TestsUnavailableError
from tests.conformance.transformers_applicability import GENERATION, NOT_APPLICABLE
from tests.conformance.transformers_conformance import SUITES, why_needed, why_not_applicable


PAGE = Path(__file__).parent / "transformers_conformance.md"
VERSION = importlib.metadata.version("transformers")
MODULES = ("models", "processing", "pipelines")
MIXINS = (
    "ModelTesterMixin",
    "ConfigTester",
    "ProcessorTesterMixin",
    "SequenceFeatureExtractionTestMixin",
    "FeatureExtractionSavingTestMixin",
    "PipelineTesterMixin",
)

_INTRODUCTION = """\
# transformers' own tests, run for BEATs and AudioListen

transformers tests its models, processors and pipelines with mixins. Most of them are in its source distribution.
`tests/conformance` downloads it once for the installed version, {version}, and runs the mixins on small models with random
weights, with the bodies of the tests unchanged:

```bash
pytest tests/conformance -k transformers
```

A test that skips itself counts as a failure, unless it is listed below as not applicable or as needing hardware. Tests that
later versions add run without being listed. Slow variants run with `-m slow`. This page is written by
`python -m tests.conformance.transformers_table`.

Of the tests that do not apply, two would fail (`test_model_get_set_embeddings`, `test_processor_to_json_string`); the others
skip themselves or find nothing to test.

In the tables, ✓ is a test that passes, - a test that does not apply, and ○ a test that runs only where its requirements are
met. A number in parentheses counts the variants of a test.
"""

_ABSENT = """\
## Mixins that are not run

- `GenerationTesterMixin` and `ExportTesterMixin` are in `tests/generation` and `tests/exporters`, which are not part of any
  distribution. The part of the second that concerns generation, a compiled decoding step, is tested below.
- `TensorParallelTesterMixin`, `FSDPTesterMixin` and `ExpertParallelTesterMixin` are included, but the code that starts
  their processes is not. `TrainingTesterMixin` trains only text models: it reads their `vocab_size`.

The requirements of `GenerationTesterMixin` are covered by our own tests in `tests/models/audio_listen`:

| requirement | tests |
|---|---|
"""

_OUT_OF_TRANSFORMERS = """
Contrastive search, DoLa, group beams and constrained beams are no longer part of transformers, which fetches their code
from the Hub; quantized caches need optimum-quanto or HQQ, and offloaded caches need an accelerator.
"""


def load_suites() -> None:
    """
    Imports the tests, which fills `SUITES`.

    Raises:
        TestsUnavailableError: if transformers' tests are not available.
    """
    for module in MODULES:
        try:
            importlib.import_module(f"tests.conformance.test_transformers_{module}")
        except pytest.skip.Exception as skipped:
            raise TestsUnavailableError(str(skipped)) from skipped
    if not SUITES:  # a module that pytest has skipped already is not run again
        raise TestsUnavailableError("the tests were skipped; `pytest -rs tests/conformance` says why")


def page() -> str:
    """Renders the page."""
    load_suites()
    lines = [_INTRODUCTION.format(version=VERSION)]
    for mixin in MIXINS:
        lines += _table(mixin)
    lines += _reasons()
    lines += _needs()
    rows = [f"| {what} | {', '.join(f'`{test}`' for test in tests)} |" for what, tests in GENERATION.items()]
    lines += [_ABSENT + "\n".join(rows), _OUT_OF_TRANSFORMERS.rstrip(), ""]
    return "\n".join(lines)


def _table(mixin: str) -> list[str]:
    suites = [suite for suite in SUITES.values() if mixin in suite.tests.values()]
    cells: dict[str, dict[str, list[str]]] = {}
    for suite in suites:
        for test, origin in suite.tests.items():
            if origin == mixin or (mixin == "PipelineTesterMixin" and origin == suite.test_class.__name__):
                marks = cells.setdefault(_without_variant(test, suite.tests), {})
                marks.setdefault(suite.name, []).append(_mark(suite.name, test))
    # The tests of other pipelines differ only in the task's name.
    if mixin == "PipelineTesterMixin":
        cells = {test: marks for test, marks in cells.items() if any("-" not in mark for mark in marks.values())}
    header = f"| test | {' | '.join(suite.name for suite in suites)} |"
    lines = [f"## `{mixin}`\n", header, "|---" * (len(suites) + 1) + "|"]
    for test, marks in sorted(cells.items()):
        row = [_summary(marks.get(suite.name, [])) for suite in suites]
        lines.append(f"| `{test}` | {' | '.join(row)} |")
    return [*lines, ""]


def _mark(suite: str, test: str) -> str:
    if why_not_applicable(suite, test) is not None:
        return "-"
    return "✓" if why_needed(test) is None else "○"


def _summary(marks: list[str]) -> str:
    counts = {mark: marks.count(mark) for mark in dict.fromkeys(marks)}
    return " ".join(mark if count == 1 else f"{mark} ({count})" for mark, count in counts.items())


def _without_variant(test: str, tests: dict[str, str]) -> str:
    """The name of a test without the suffix that `parameterized` adds."""
    match = re.fullmatch(r"(test_\w+?)_(\d+)(_\w+)?", test)
    first = re.compile(rf"{match[1]}_0+(_\w+)?") if match else None
    return match[1] if match and first and any(first.fullmatch(other) for other in tests) else test


def _reasons() -> list[str]:
    by_reason: dict[str, dict[str, list[str]]] = {}
    for suite in SUITES.values():
        for test in suite.originals:
            reason = why_not_applicable(suite.name, test)
            assert reason is not None  # that is why it is among the originals
            tests = by_reason.setdefault(reason, {})
            names = tests.setdefault(_without_variant(test, suite.tests), [])
            if suite.name not in names:
                names.append(suite.name)
    lines = ["## Why tests do not apply\n", "| tests | of | why |", "|---|---|---|"]
    for reason in dict.fromkeys(NOT_APPLICABLE.values()):
        if reason in by_reason:
            tests = by_reason[reason]
            suites = dict.fromkeys(name for names in tests.values() for name in names)
            lines.append(f"| {_listed(list(tests))} | {', '.join(suites)} | {reason} |")
    return [*lines, ""]


def _listed(tests: list[str]) -> str:
    if len(tests) > 12:
        return f"`{tests[0]}` and {len(tests) - 1} others"
    return ", ".join(f"`{test}`" for test in tests)


def _needs() -> list[str]:
    by_need: dict[str, list[str]] = {}
    for suite in SUITES.values():
        for test in suite.tests:
            need = why_needed(test)
            if need is not None and why_not_applicable(suite.name, test) is None:
                tests = by_need.setdefault(need, [])
                if test not in tests:
                    tests.append(test)
    lines = ["## Requirements of tests\n", "| tests | requirement |", "|---|---|"]
    lines += [f"| {', '.join(f'`{test}`' for test in tests)} | {need} |" for need, tests in by_need.items()]
    return [*lines, ""]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
