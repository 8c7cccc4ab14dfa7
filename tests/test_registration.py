"""What importing the package makes known to other libraries, and what it leaves alone."""

import json
import os
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import transformers
from peft import PeftConfig, PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

import peft_listen
from peft_listen import ListenConfig, ListenModel, compatibility, registration
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


def run(code):
    """Runs code in a fresh process and returns what it prints."""
    source = str(Path(peft_listen.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": source, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


# A version of transformers that is too old for the audio models.
OLD_TRANSFORMERS = """
    import importlib.metadata

    installed_version = importlib.metadata.version
    importlib.metadata.version = lambda name: "5.14.1" if name == "transformers" else installed_version(name)
"""


def test_importing_the_package_imports_no_audio_model():
    code = """
        import sys
        import peft_listen

        late = ("peft_listen.audio", "peft_listen.models", "peft_listen.pipelines")
        print([name for name in sys.modules if name.startswith(late)])
        peft_listen.BeatsConfig
        assert "peft_listen.models.beats" in sys.modules and "peft_listen.models.audio_listen" not in sys.modules
    """
    assert run(code).strip() == "[]"


def test_every_public_name_is_listed_before_it_is_imported():
    run("import peft_listen; assert set(peft_listen.__all__) <= set(dir(peft_listen)); from peft_listen import *")


LATE = {
    "transformers.AutoConfig.for_model('audio_listen')": "AudioListenConfig",
    "processing_auto.processor_class_from_name('AudioListenProcessor')": "ProcessorMixin",
    "feature_extraction_auto.feature_extractor_class_from_name('BeatsFeatureExtractor')": "FeatureExtractionMixin",
    "transformers.pipelines.check_task('audio-text-to-text')[1]['impl']": "AudioTextToTextPipeline",
    "transformers.pipelines.check_task('audio-text-to-text')[1]['pt'][0]": "AutoModelForMultimodalLM",
    "transformers.AutoModel.from_config(imported('models.beats').BeatsConfig(num_hidden_layers=1))": "BeatsModel",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_transformers_finds_what_is_imported_late():
    # Each is looked up first in a copy of the process, in which nothing has been looked up.
    code = f"""
        import importlib
        import os
        import peft_listen
        import transformers
        from transformers.models.auto import feature_extraction_auto, processing_auto

        def imported(name):
            return importlib.import_module("peft_listen." + name)

        for lookup, found in {LATE!r}.items():
            process = os.fork()
            if not process:
                value = eval(lookup)
                bases = (value if isinstance(value, type) else type(value)).__mro__
                os._exit(found not in [base.__name__ for base in bases])
            if os.waitpid(process, 0)[1]:
                print(lookup)
    """
    assert run(code) == ""


def test_several_threads_may_be_the_first_to_look():
    code = """
        from concurrent.futures import ThreadPoolExecutor
        import peft_listen
        from transformers import AutoConfig

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(AutoConfig.for_model, ["beats", "audio_listen"] * 4))
        print(*sorted({type(config).__name__ for config in found}))
    """
    assert run(code).split() == ["AudioListenConfig", "BeatsConfig"]


def test_the_tuner_works_where_transformers_is_too_old_for_the_audio_models():
    code = (
        OLD_TRANSFORMERS
        + """
    import peft_listen
    from peft import PeftType, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM, CONFIG_MAPPING

    config = AutoConfig.for_model("llama", hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                                  num_attention_heads=1, vocab_size=16)
    model = get_peft_model(AutoModelForCausalLM.from_config(config), peft_listen.ListenConfig(pool_size=2, prompt_length=1,
                           max_train_prompt_length=1))
    assert list(CONFIG_MAPPING.items()) and "llama" in CONFIG_MAPPING
    for use in (
        lambda: peft_listen.AudioListenModel,
        lambda: peft_listen.BeatsConfig,
        lambda: peft_listen.AudioTextToTextPipeline,
        lambda: __import__("peft_listen.models.audio_listen"),
        lambda: AutoConfig.for_model("audio_listen"),
    ):
        try:
            use()
        except ImportError as error:
            print(error)
        else:
            raise AssertionError("no error")
    """
    )
    messages = run(code).splitlines()
    assert len(messages) == 5
    for message in messages:
        assert "need transformers 5.23 or newer, but transformers 5.14.1 is installed" in message
        assert 'pip install "transformers>=5.23"' in message


def test_a_newer_library_than_tested_gives_one_warning(monkeypatch, recwarn):
    monkeypatch.setitem(compatibility.NEWEST_TESTED, "transformers", "5.0")
    monkeypatch.setattr(registration, "_has_warned", False)
    register()
    register()
    (message,) = [str(warning.message) for warning in recwarn if "has not been tested" in str(warning.message)]
    assert f"transformers {transformers.__version__} (tested up to 5.0)" in message and "pip install" in message


def test_a_tested_library_gives_no_warning(monkeypatch, recwarn):
    monkeypatch.setattr(compatibility, "NEWEST_TESTED", {"transformers": transformers.__version__})
    monkeypatch.setattr(registration, "_has_warned", False)
    register()
    assert not [warning for warning in recwarn if "has not been tested" in str(warning.message)]


def test_the_package_is_imported_where_no_optional_dependency_is_installed():
    code = f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL})); import peft_listen"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
