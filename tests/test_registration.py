"""What importing the package makes known to other libraries, and what it leaves alone."""

import json
import pickle
import subprocess
import sys

import pytest
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from peft_listen import ListenConfig, ListenModel
from peft_listen.registration import register


OPTIONAL = [
    "trl",
    "datasets",
    "soundfile",
    "soxr",
    "gradio",
    "librosa",
    "torchcodec",
    "vllm",
    "evaluate",
    "espeakng_loader",
]


def test_peft_knows_the_method():
    member = PeftType["LISTEN"]
    assert member == "LISTEN" and member.value == "LISTEN" and PeftType("LISTEN") is member
    assert member in list(PeftType) and len({m.value for m in PeftType}) == len(PeftType)
    assert PEFT_TYPE_TO_CONFIG_MAPPING[member] is ListenConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[member] is ListenModel
    assert PEFT_TYPE_TO_PREFIX_MAPPING[member] == "listen_"
    assert pickle.loads(pickle.dumps(member)) is member


def test_registering_again_changes_nothing():
    before = [list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING), dict(PEFT_TYPE_TO_CONFIG_MAPPING)]
    register()
    register()
    assert [list(PeftType), dict(PEFT_TYPE_TO_TUNER_MAPPING), dict(PEFT_TYPE_TO_CONFIG_MAPPING)] == before


def test_other_methods_of_peft_stay_as_they_were():
    for member in PeftType:
        assert PeftType(member.value) is member
    with pytest.raises(ValueError, match=r"is not a valid PeftType"):
        PeftType("LISTENING")


def test_a_configuration_names_the_method(tmp_path):
    ListenConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "adapter_config.json").read_text())
    assert saved["peft_type"] == "LISTEN"
    assert isinstance(PeftConfig.from_pretrained(tmp_path), ListenConfig)


def test_the_package_is_imported_where_no_optional_dependency_is_installed():
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); import peft_listen"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
