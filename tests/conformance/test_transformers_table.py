"""The page on transformers' tests says what is run, and gives reasons that hold."""

import dataclasses
import re
import unittest
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from transformers import PreTrainedConfig

from tests.conformance import transformers_applicability, transformers_suite, transformers_table
from tests.conformance.transformers_conformance import SUITES, conforms


TESTS = Path(__file__).parents[1]

try:
    transformers_table.load_suites()
except transformers_suite.TestsUnavailableError as error:
    pytest.skip(str(error), allow_module_level=True)


def test_the_page_is_up_to_date():
    page = transformers_table.PAGE.read_text(encoding="utf-8")
    if f"the installed version, {transformers_table.VERSION}," not in page:
        pytest.skip(f"the page is about another version of transformers than {transformers_table.VERSION}")
    assert page == transformers_table.page(), "run `python -m tests.conformance.transformers_table`"


def test_every_rule_is_about_a_test():
    tests = {(suite.name, test) for suite in SUITES.values() for test in suite.tests}
    for suites, pattern in transformers_applicability.NOT_APPLICABLE:
        assert any(fnmatchcase(suite, suites) and fnmatchcase(test, pattern) for suite, test in tests), pattern
    for pattern in transformers_applicability.NEEDS:
        assert any(fnmatchcase(test, pattern) for _, test in tests), pattern


def test_most_tests_run():
    num_tests = sum(len(suite.tests) for suite in SUITES.values() if "pipeline" not in suite.name)
    num_skipped = sum(len(suite.originals) for suite in SUITES.values() if "pipeline" not in suite.name)
    assert num_tests - num_skipped > 400
    assert num_skipped < num_tests / 3


def test_the_tests_that_reasons_name_are_there():
    source = "\n".join(path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py"))
    reasons = [reason for reason in transformers_applicability.NOT_APPLICABLE.values() if reason]
    named = {name for reason in reasons for name in re.findall(r"`(test_\w+)`", reason)}
    assert named
    for name in named.union(*transformers_applicability.GENERATION.values()):
        assert f"def {name}(" in source, name


@pytest.mark.slow
def test_what_does_not_apply_skips_itself_or_finds_nothing_to_test():
    failed = []
    for suite in SUITES.values():
        if "pipeline" in suite.name:  # their names tell that they are for other tasks
            continue
        case = type("OriginalTests", (suite.test_class,), dict(suite.originals))
        for name in suite.originals:
            result = unittest.TestResult()
            unittest.TestSuite([case(name)]).run(result)
            # These go over the models that can embed a modality, of which there are none.
            assert result.skipped or not result.wasSuccessful() or fnmatchcase(name, "test_get_*_features_*"), name
            if not result.wasSuccessful():
                failed.append((suite.name, name))
    assert failed == [
        ("BEATs", "test_model_get_set_embeddings"),
        ("AudioListen processor with a sound encoder", "test_processor_to_json_string"),
    ]


def test_a_test_that_skips_itself_fails_unless_it_was_declared():
    @conforms("AudioListen in a test of the tests")
    class Case(unittest.TestCase):
        def test_cpu_offload(self):
            self.skipTest("there is no accelerator")

        def test_vision_axial_rope(self):
            raise AssertionError

        def test_training(self):
            self.skipTest("I would rather not")

        @unittest.skip("nor I")
        def test_save_load(self):
            raise AssertionError

    try:
        result = unittest.TestResult()
        unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    finally:
        del SUITES["AudioListen in a test of the tests"]
    assert [test.id().rpartition(".")[2] for test, _ in result.skipped] == [
        "test_cpu_offload",
        "test_vision_axial_rope",
    ]
    assert [test.id().rpartition(".")[2] for test, _ in result.failures] == ["test_save_load", "test_training"]
    assert "I would rather not" in result.failures[1][1]


def test_the_common_arguments_of_configurations_are_all_tried():
    fields = {field.name: field.default for field in dataclasses.fields(PreTrainedConfig)}
    tried = transformers_suite.COMMON_CONFIG_ARGUMENTS
    assert tried.keys() == fields.keys() - {"transformers_version"}
    assert not any(tried[name] == fields[name] for name in tried)
