"""What a file of a checkpoint may ask for: data, never code, and no argument that is the caller's to give."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from peft import get_peft_model
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoProcessor,
    dynamic_module_utils,
    pipeline,
)

from peft_listen import (
    AudioListenConfig,
    AudioListenForCausalLM,
    AudioListenModel,
    AudioListenProcessor,
    BeatsFeatureExtractor,
    ListenConfig,
)
from peft_listen_cli import main


EVIL = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

(Path(__file__).parent / "ran").touch()
Path({marker!r}).touch()

class EvilConfig(LlamaConfig):
    pass

class EvilForCausalLM(LlamaForCausalLM):
    pass
"""


@pytest.fixture(scope="module")
def without_frozen(published_parts, tmp_path_factory) -> Path:
    """Folder of a model saved with references to its parts, and its processor."""
    folder = tmp_path_factory.mktemp("references")
    qformer = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}
    model = AudioListenForCausalLM.from_sub_models_pretrained(**published_parts, qformer_config=qformer)
    model.save_pretrained(folder, save_frozen=False)
    parts = {name: published_parts[name] for name in ("speech", "llm")}
    AudioListenProcessor.from_sub_models_pretrained(**parts, sound=True).save_pretrained(folder)
    return folder


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A file that exists as soon as the code of `evil` has run."""
    return tmp_path / "evil_ran"


@pytest.fixture
def evil(published_parts, tmp_path, marker, monkeypatch) -> Path:
    """Folder of a Llama checkpoint that asks for code of its own."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = tmp_path / "evil"
    shutil.copytree(published_parts["llm"], folder)
    (folder / "evil.py").write_text(EVIL.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.EvilForCausalLM"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def checkpoint(without_frozen, tmp_path):
    """Writes a checkpoint with changed references, and returns its folder."""

    def write(change: Any) -> Path:
        folder = tmp_path / "checkpoint"
        shutil.copytree(without_frozen, folder)
        config = json.loads((folder / "config.json").read_text())
        references = config["frozen_references"]
        config["frozen_references"] = change(references) if callable(change) else change
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return write


def as_adapter(folder: Path, tmp_path: Path, composite_folder: Path) -> Path:
    """Folder of an adapter whose base is `folder`."""
    model = get_peft_model(
        AudioListenForCausalLM.from_pretrained(composite_folder), ListenConfig(pool_size=4, prompt_length=2)
    )
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(folder)}))
    return adapter


DOORS = {
    "AudioListenForCausalLM": AudioListenForCausalLM.from_pretrained,
    "AudioListenModel": AudioListenModel.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained,
    "AutoModelForMultimodalLM": AutoModelForMultimodalLM.from_pretrained,
    "pipeline": lambda folder: pipeline("audio-text-to-text", model=str(folder)),
}


def with_items(**items: Any):
    return lambda references: references | {"language_model": references["language_model"] | items}


MALFORMED = {
    "code, allowed by a word": (with_items(trust_remote_code="yes"), "trust_remote_code"),
    "code, allowed by true": (with_items(trust_remote_code=True), "trust_remote_code"),
    "code of another revision": (with_items(code_revision="main"), "code_revision"),
    "pickled weights": (with_items(weights_only=False), "weights_only"),
    "weights that are not safetensors": (with_items(use_safetensors=False), "use_safetensors"),
    "a kernel from the Hub": (with_items(attn_implementation="evil/kernel"), "attn_implementation"),
    "any kernel": (with_items(allow_all_kernels=True), "allow_all_kernels"),
    "a folder to write to": (with_items(cache_dir="/tmp/evil"), "cache_dir"),
    "a proxy": (with_items(proxies={"https": "evil"}), "proxies"),
    "a token": (with_items(token="secret"), "token"),
    "a configuration": (with_items(config="evil"), "'config'"),
    "renamed weights": (with_items(key_mapping={"a": "b"}), "key_mapping"),
    "another part": (lambda references: references | {"tokenizer": {"name_or_path": "evil"}}, "'tokenizer'"),
    "an upper-case name": (
        lambda references: references | {"Language_model": {"name_or_path": "x"}},
        "Language_model",
    ),
    "a path without its name": (lambda references: references | {"language_model": "evil"}, "language_model.*'evil'"),
    "a list": (["evil"], r"frozen_references.*\['evil'\]"),
    "a word": ("evil", "frozen_references.*'evil'"),
    "no source": (lambda references: references | {"language_model": {"revision": "main"}}, "language_model.*missing"),
    "an empty source": (with_items(name_or_path=""), "language_model.*missing or empty"),
    "a source that is a list": (with_items(name_or_path=["evil"]), r"language_model.*\['evil'\].*name_or_path"),
    "a source that is null": (with_items(name_or_path=None), "language_model.*None.*name_or_path"),
    "a revision that is a number": (with_items(revision=1), "language_model.*1.*revision"),
    "a subfolder that is an object": (with_items(subfolder={"a": 1}), "language_model.*subfolder"),
}

SECRET = "s3cret"
# Texts that no field may contain, and what the error says about them.
BAD_TEXTS = {
    "a blank": (" ", "is blank"),
    "tabs and line breaks": ("\t\n", "is blank"),
    "an ideographic space": ("\u3000", "is blank"),
    "a null character": ("evil\0", r"control character '\\x00'"),
    "a null character in front": ("\0evil", "control character"),
    "a line break": ("evil\nmodel", "control character"),
    "an escape sequence of a terminal": ("\x1b[2Jevil", "control character"),
    "a control character of Latin-1": ("evil\x9b2J", "control character"),
    "a separator of lines": ("evil\u2028", "control character"),
    "white space in front": (" evil", "begins or ends with white space"),
    "white space at the end": ("evil/model ", "begins or ends with white space"),
    "half a surrogate pair": ("evil\ud83d", "half a surrogate pair"),
    "the other half": ("\udc00evil", "half a surrogate pair"),
    "a name that is not UTF-8": ("srv/\udcff", "half a surrogate pair"),
    "a URL": ("https://example.org/evil", "is a URL"),
    "a URL with a password": (f"https://anna:{SECRET}@example.org/evil", "is a URL"),
    "a URL in capitals": (f"HTTPS://anna:{SECRET}@example.org/evil", "is a URL"),
    "a URL with one slash": (f"https:/anna:{SECRET}@example.org/evil", "is a URL"),
    "a URL with a token": (f"s3://bucket/evil?token={SECRET}", "is a URL"),
    "a URL with a slash in its password": (f"ftp://anna:a/{SECRET}@example.org", "is a URL"),
    "a URL of a file": ("file:///etc", "is a URL"),
    "a data URI": ("data:text/plain;base64,AAAA", "is a URL"),
    "a URL after white space": (f" https://anna:{SECRET}@example.org", "white space"),
    "a URL after a null character": (f"\0https://anna:{SECRET}@example.org", "control character"),
    "the folder above": ("../evil", r"contains '\.\.'"),
    "folders above a folder": ("/srv/models/../../etc", r"contains '\.\.'"),
    "folders above in the spelling of Windows": ("a\\..\\..\\b", r"contains '\.\.'"),
    "a text that is too long": ("x" * 1_000_000, "has 1000000 characters"),
}
# Where a path is relative to the repository.
BAD_FILE_NAMES = {
    "the root": ("/etc", "is an absolute path"),
    "a home folder": ("~/evil", "is an absolute path"),
    "a drive": ("C:/evil", "is an absolute path"),
    "a share": (r"\\server\evil", "is an absolute path"),
}


class TestReferences:
    @pytest.mark.parametrize("field", ["name_or_path", "revision", "subfolder", "gguf_file"])
    @pytest.mark.parametrize("case", [*BAD_TEXTS, *BAD_FILE_NAMES])
    def test_texts_that_name_nothing_are_refused(self, without_frozen, tmp_path, field, case):
        text, message = (BAD_TEXTS | BAD_FILE_NAMES)[case]
        if field == "name_or_path" and case in BAD_FILE_NAMES:
            pytest.skip("a part may be in any folder")
        for part in ("speech_tower", "sound_tower", "language_model"):
            folder = tmp_path / part
            folder.mkdir()
            config = json.loads((without_frozen / "config.json").read_text())
            config["frozen_references"][part][field] = text
            (folder / "config.json").write_text(json.dumps(config))
            for load in (AutoConfig.from_pretrained, AudioListenForCausalLM.from_pretrained):
                with pytest.raises(
                    ValueError, match=rf"frozen_references\['{part}'\]`.*'{field}', which .*{message}"
                ) as e:
                    load(folder)
                assert SECRET not in str(e.value) and len(str(e.value)) < 1_000

    @pytest.mark.parametrize(
        "references",
        [
            f"https://anna:{SECRET}@example.org",
            [f"https://anna:{SECRET}@example.org"],
            {f"https://anna:{SECRET}@example.org": {}},
            {"language_model": f"https://anna:{SECRET}@example.org"},
            {"language_model": [f"https://anna:{SECRET}@example.org"]},
            {"language_model": {"name_or_path": [f"https://anna:{SECRET}@example.org"]}},
            {"language_model": {f"https://anna:{SECRET}@example.org": "x"}},
        ],
    )
    def test_no_message_contains_a_password(self, without_frozen, references):
        config = AudioListenConfig.from_pretrained(without_frozen)
        config.frozen_references = references
        with pytest.raises(ValueError, match="frozen_references.*https://example.org") as caught:
            AudioListenForCausalLM.from_pretrained(without_frozen, config=config)
        assert SECRET not in str(caught.value)

    @pytest.mark.parametrize("name", ["with blanks in it", "größe", "नमस्ते", "a..b", "user@host", "x:y", "न\u200d"])
    def test_unusual_folders_are_accepted(self, checkpoint, published_parts, tmp_path, name):
        folder = tmp_path / name
        shutil.copytree(published_parts["llm"], folder)
        model = AudioListenForCausalLM.from_pretrained(checkpoint(with_items(name_or_path=str(folder))))
        model.save_pretrained(tmp_path / "again", save_frozen=False)
        saved = json.loads((tmp_path / "again" / "config.json").read_text())["frozen_references"]["language_model"]
        assert saved["name_or_path"] == str(folder)

    def test_a_reference_that_could_not_be_loaded_is_not_saved(self, checkpoint, published_parts, tmp_path):
        folder = tmp_path / "name "
        shutil.copytree(published_parts["llm"], folder)
        model = AudioListenForCausalLM.from_pretrained(checkpoint(lambda references: references), llm=folder)
        with pytest.raises(ValueError, match="begins or ends with white space"):
            model.save_pretrained(tmp_path / "again", save_frozen=False)

    @pytest.mark.parametrize("case", MALFORMED)
    def test_only_sources_and_file_names_are_allowed(self, checkpoint, case):
        change, message = MALFORMED[case]
        with pytest.raises(ValueError, match=message):
            AudioListenForCausalLM.from_pretrained(checkpoint(change))

    @pytest.mark.parametrize("case", MALFORMED)
    def test_a_configuration_object_is_checked_too(self, without_frozen, case):
        change, message = MALFORMED[case]
        config = AudioListenConfig.from_pretrained(without_frozen)
        config.frozen_references = change(config.frozen_references) if callable(change) else change
        with pytest.raises(ValueError, match=message):
            AudioListenForCausalLM.from_pretrained(without_frozen, config=config)

    @pytest.mark.parametrize("value", [True, "yes", "true", 1])
    @pytest.mark.parametrize("door", [*DOORS, "AutoConfig"])
    def test_a_file_cannot_allow_code_by_any_door(self, checkpoint, evil, marker, door, value):
        folder = checkpoint(with_items(name_or_path=str(evil), trust_remote_code=value))
        with pytest.raises(ValueError, match="language_model.*trust_remote_code"):
            {**DOORS, "AutoConfig": AutoConfig.from_pretrained}[door](folder)
        assert not marker.exists()

    def test_nor_as_the_base_of_an_adapter(self, checkpoint, evil, marker, tmp_path, composite_folder):
        base = checkpoint(with_items(name_or_path=str(evil), trust_remote_code="yes"))
        adapter = as_adapter(base, tmp_path, composite_folder)
        for load in DOORS.values():
            with pytest.raises(ValueError, match="language_model.*trust_remote_code"):
                load(adapter)
        assert not marker.exists()

    def test_nor_on_the_command_line(self, checkpoint, evil, marker, tmp_path, composite_folder, clips, capsys):
        base = checkpoint(with_items(name_or_path=str(evil), trust_remote_code="yes"))
        for model in (base, as_adapter(base, tmp_path, composite_folder)):
            assert main(["ask", clips[0], "What?", "--model", str(model)]) == 2
            assert "trust_remote_code" in capsys.readouterr().err
        assert not marker.exists()

    @pytest.mark.parametrize("door", DOORS)
    def test_a_part_that_has_code_is_loaded_without_it(self, checkpoint, evil, marker, door):
        DOORS[door](checkpoint(with_items(name_or_path=str(evil))))
        assert not marker.exists()

    @pytest.mark.parametrize("door", [name for name in DOORS if name != "pipeline"])
    def test_the_caller_can_allow_it(self, checkpoint, evil, marker, door):
        DOORS[door](checkpoint(with_items(name_or_path=str(evil))), trust_remote_code=True)
        assert marker.exists()

    @pytest.mark.parametrize("part", ["speech_tower", "language_model"])
    def test_a_reference_to_the_checkpoint_itself_is_refused(self, checkpoint, tmp_path, part):
        own = {"name_or_path": str(tmp_path / "checkpoint")}
        with pytest.raises(ValueError, match=f"`{part}`.*`model_type` is audio_listen"):
            AudioListenForCausalLM.from_pretrained(checkpoint(lambda references: references | {part: own}))

    def test_a_part_of_unknown_type_asks_nobody(self, checkpoint, evil, marker, monkeypatch):
        """transformers would ask at a terminal whether the code may run."""
        config = json.loads((evil / "config.json").read_text())
        config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.EvilConfig"} | config["auto_map"]}
        (evil / "config.json").write_text(json.dumps(config))
        monkeypatch.setattr("builtins.input", lambda *args: "y")
        for part in ("speech_tower", "sound_tower", "language_model"):
            folder = checkpoint(lambda references, part=part: references | {part: {"name_or_path": str(evil)}})
            with pytest.raises(ValueError, match=f"`{part}`.*`model_type` is evil"):
                AudioListenForCausalLM.from_pretrained(folder)
            shutil.rmtree(folder)
        assert not marker.exists()


# Values of `processor_config.json`, and what the error names.
PROCESSOR_ITEMS = {
    "text for a number": ({"num_queries": "1"}, "num_queries"),
    "no window": ({"window_length": 0}, "window_length"),
    "a stride that is not whole": ({"window_stride": 1.5}, "window_stride"),
    "true for a number": ({"window_length": True}, "window_length"),
    "a word for a switch": ({"group_sound_by_length": "no"}, "group_sound_by_length"),
    "text for seconds": ({"speech_chunk_multiple": "5"}, "speech_chunk_multiple"),
    "a list of seconds": ({"max_audio_seconds": [30]}, "max_audio_seconds"),
    "seconds that are not a number": ({"max_audio_seconds": float("nan")}, "max_audio_seconds"),
    "a list as the token": ({"audio_token": ["<|audio|>"]}, "audio_token"),
    "an empty token": ({"audio_token": ""}, "audio_token"),
    "a word for the sound features": ({"sound_feature_extractor": "evil"}, "sound_feature_extractor"),
    "a method of the extractor": ({"sound_feature_extractor": {"pad": "x"}}, "sound_feature_extractor.*'pad'"),
    "a private attribute": ({"sound_feature_extractor": {"__class__": "x"}}, "sound_feature_extractor.*'__class__'"),
    "a mean that is text": ({"sound_feature_extractor": {"mean": "15"}}, "`mean`"),
    "a deviation of 0": ({"sound_feature_extractor": {"std": 0}}, "`std`"),
    "half a mel bin": ({"sound_feature_extractor": {"feature_size": 0.5}}, "`feature_size`"),
}


@pytest.mark.parametrize("load", [AudioListenProcessor.from_pretrained, AutoProcessor.from_pretrained])
@pytest.mark.parametrize("case", PROCESSOR_ITEMS)
def test_a_processor_accepts_only_its_own_settings(composite_folder, tmp_path, case, load):
    items, message = PROCESSOR_ITEMS[case]
    folder = tmp_path / "processor"
    shutil.copytree(composite_folder, folder)
    (folder / "config.json").unlink()  # whose windows would be compared first
    file = folder / "processor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | items))
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_a_saved_sound_feature_extractor_is_accepted(make_processor, tmp_path):
    processor = make_processor(sound=True)
    processor.save_pretrained(tmp_path)
    loaded = AudioListenProcessor.from_pretrained(tmp_path).sound_feature_extractor
    assert (
        isinstance(loaded, BeatsFeatureExtractor) and loaded.to_dict() == processor.sound_feature_extractor.to_dict()
    )
