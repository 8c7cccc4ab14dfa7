"""Writes `tests/conformance/peft_conformance.md`, which lists the PEFT tests that run for LISTEN and those that do not
apply: `python -m tests.conformance.peft_table`."""

from __future__ import annotations

import importlib.metadata
import textwrap
from pathlib import Path

from tests.conformance import peft_applicability, peft_suite
from tests.conformance.peft_applicability import PeftTest


PAGE = Path(__file__).parent / "peft_conformance.md"
VERSION = importlib.metadata.version("peft")

_INTRODUCTION = """\
# PEFT's own tests, run for LISTEN

PEFT tests each of its methods with one suite: `PeftCommonTester` and, for language models, `test_decoder_models.py`. Both
are in PEFT's source distribution. `tests/conformance` downloads it once for the installed version, {version}, and runs the
tests for LISTEN with their bodies unchanged:

```bash
pytest tests/conformance/test_peft.py
```

{models}

A test that PEFT itself skips for LISTEN counts as a failure, unless it is listed below as not applicable. One skip is
removed: PEFT skips GPT-2 for methods that do not wrap `Conv1D` layers, and LISTEN does not wrap any layers. Tests that later
versions of PEFT add run without being listed. `python -m tests.conformance.peft_table` writes this page.
"""

_MODELS = (
    "Instead of models from the Hub, tiny models with random weights are created under the same names: {names}. The default "
    "selector runs on all of them. Two further configurations run on Llama: attention weights without key loss, and "
    "residual selection with shared prompts and remedies for collapse."
)


def page() -> str:
    """Renders the page."""
    decoder, common = (peft_suite.load(name) for name in ("test_decoder_models", "testing_common"))
    decoder_tests = peft_applicability.decoder_tests(decoder.TestDecoderModels)
    common_tests = peft_applicability.common_tests(common.PeftCommonTester, decoder.TestDecoderModels)
    names = _listed([f"`{name.rpartition('/')[2]}`" for name in decoder.PEFT_DECODER_MODELS_TO_TEST])
    models = textwrap.fill(_MODELS.format(names=names), width=120, break_on_hyphens=False)
    return "\n".join(
        [
            _INTRODUCTION.format(version=VERSION, models=models),
            *_run("Run: `TestDecoderModels`", decoder_tests),
            *_run("Run: other checks of `PeftCommonTester`", common_tests),
            *_not_applicable(decoder_tests + common_tests),
        ]
    )


def _run(title: str, tests: list[PeftTest]) -> list[str]:
    rows = [
        f"| `{test.name}` | {', '.join(f'`{check}`' for check in test.checks if check != test.name) or 'itself'} |"
        for test in tests
        if test.reason is None
    ]
    return [f"## {title} ({len(rows)})\n", "| test | check of `PeftCommonTester` |", "|---|---|", *rows, ""]


def _not_applicable(tests: list[PeftTest]) -> list[str]:
    by_reason: dict[str, list[str]] = {}
    for test in tests:
        if test.reason is not None:
            by_reason.setdefault(test.reason, []).append(f"`{test.name}`")
    rows = [f"| {', '.join(names)} | {reason} |" for reason, names in by_reason.items()]
    count = sum(map(len, by_reason.values()))
    return [f"## Do not apply ({count})\n", "| tests | why |", "|---|---|", *rows, ""]


def _listed(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
