"""The page on PEFT's tests says what is run, and gives reasons that hold."""

import re
from pathlib import Path

import pytest

from tests.conformance import peft_applicability, peft_suite, peft_table


decoder = peft_suite.load_or_skip("test_decoder_models")
common = peft_suite.load_or_skip("testing_common")

TESTS = Path(__file__).parents[1]


def test_the_page_is_up_to_date():
    page = peft_table.PAGE.read_text(encoding="utf-8")
    if f"the installed version, {peft_table.VERSION}," not in page:
        pytest.skip(f"the page is about another version of PEFT than {peft_table.VERSION}")
    assert page == peft_table.page(), "run `python -m tests.conformance.peft_table`"


def test_everything_that_does_not_apply_is_a_test_of_peft():
    tests = peft_applicability.decoder_tests(decoder.TestDecoderModels)
    tests += peft_applicability.common_tests(common.PeftCommonTester, decoder.TestDecoderModels)
    assert set(peft_applicability.NOT_APPLICABLE) <= {test.name for test in tests}
    assert sum(test.reason is None for test in tests) > 25


def test_every_check_is_run_or_has_a_reason():
    tests = peft_applicability.decoder_tests(decoder.TestDecoderModels)
    tests += peft_applicability.common_tests(common.PeftCommonTester, decoder.TestDecoderModels)
    checks = {name for name in vars(common.PeftCommonTester) if name.startswith("_test_")}
    assert {check for test in tests for check in test.checks} == checks


def test_the_tests_that_reasons_name_are_there():
    source = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    files = {path.name for path in TESTS.rglob("test_*.py")}
    for reason in peft_applicability.NOT_APPLICABLE.values():
        for name in re.findall(r"`(test_\w+)`", reason):
            assert f"def {name}(" in source or name in peft_own_tests(), name
        for name in re.findall(r"`(test_\w+\.py)`", reason):
            assert name in files, name


def peft_own_tests():
    return {name for name in vars(decoder.TestDecoderModels) if name.startswith("test_")}
