"""PEFT's own tests, run for LISTEN on tiny local models under the names of those on the Hub.

Their bodies stay as they are. A test that PEFT itself skips for LISTEN is a failure here, unless it is listed among
those that do not apply.
"""

import functools
from contextlib import contextmanager

import pytest
import torch

from tests.conformance import peft_applicability, peft_models, peft_suite


decoder = peft_suite.load_or_skip("test_decoder_models")
common = peft_suite.load_or_skip("testing_common")
hub_access = peft_suite.load_or_skip("testing_utils")


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    peft_models.save_models(folder)
    return folder


@pytest.fixture(autouse=True)
def _local_models(hub, monkeypatch):
    monkeypatch.chdir(hub)  # `from_pretrained` finds the names as folders
    # PEFT's tests are online at the first use of a name; say that all were used.
    monkeypatch.setattr(hub_access, "_HUB_MODEL_ACCESSES", dict.fromkeys(peft_models.CONFIGS, 1))
    # It skips methods that wrap no Conv1D layer on GPT-2. LISTEN wraps none on any model, and GPT-2 is as good.
    monkeypatch.setattr(common, "_skip_if_conv1d_not_supported", lambda *_: None)
    monkeypatch.setattr(decoder, "load_dataset_english_quotes", peft_models.quotes)
    torch.manual_seed(0)


AXES = "model_id,config_cls,config_kwargs"


def case_name(value):
    if isinstance(value, dict):
        return value.get("selector", "similarity")
    return value.rpartition("/")[2] if isinstance(value, str) else value.__name__


@contextmanager
def never_skipping():
    try:
        yield
    except pytest.skip.Exception as skipped:
        pytest.fail(f"PEFT skips this for LISTEN: {skipped}. If it does not apply, list it with the reason.")


def for_listen(test):
    """The same test over LISTEN's configurations instead of those of PEFT's methods."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        with never_skipping():
            test(*args, **kwargs)

    # Model and method are two axes of PEFT's tests; here they are one, of which other configurations take a part.
    marks = {mark.args[0]: mark for mark in test.pytestmark}
    models = marks.pop("model_id").args[1]
    marks.pop("config_cls,config_kwargs")
    case = pytest.mark.parametrize(AXES, peft_applicability.cases(models), ids=case_name)
    run.pytestmark = [*marks.values(), case.mark]
    return run


def adapted_tests():
    for test in peft_applicability.decoder_tests(decoder.TestDecoderModels):
        original = getattr(decoder.TestDecoderModels, test.name)
        # What does not apply is hidden from pytest; the table in the docs has it with the reason.
        yield test.name, for_listen(original) if test.reason is None else None


TestDecoderModels = type("TestDecoderModels", (decoder.TestDecoderModels,), dict(adapted_tests()))


@pytest.mark.parametrize(AXES, peft_applicability.cases(decoder.PEFT_DECODER_MODELS_TO_TEST), ids=case_name)
@pytest.mark.parametrize(
    "check",
    [
        test.name
        for test in peft_applicability.common_tests(common.PeftCommonTester, decoder.TestDecoderModels)
        if test.reason is None
    ],
)
def test_common(check, model_id, config_cls, config_kwargs):
    with never_skipping():
        getattr(decoder.TestDecoderModels(), check)(model_id, config_cls, config_kwargs.copy())
