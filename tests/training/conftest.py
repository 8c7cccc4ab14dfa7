"""
Fixtures of the training tests. Their tokenizer has a chat template and their model has a sound encoder by default, so
`make_tokenizer`, `make_processor`, `make_model` and `make_adapted` replace the shared fixtures of the same names.
"""

from collections.abc import Callable

import pytest
from peft import PeftModel
from transformers import PreTrainedTokenizerFast

from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from tests import small_models


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return small_models.make_chat_tokenizer


@pytest.fixture(scope="session")
def make_processor() -> Callable[..., AudioListenProcessor]:
    return small_models.make_chat_processor


@pytest.fixture(scope="session")
def processor() -> AudioListenProcessor:
    return small_models.make_chat_processor()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., AudioListenForCausalLM]:
    return small_models.make_chat_model


@pytest.fixture(scope="session")
def make_adapted() -> Callable[..., PeftModel]:
    return small_models.make_adapted_chat_model
