"""A model that is published can be loaded by its name alone, on a machine that has nothing else."""

import json
import shutil
import warnings

import numpy as np
import peft
import pytest
import soundfile
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from packaging.version import Version
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from transformers import pipeline

from peft_listen import (
    AudioListenForCausalLM,
    AudioListenProcessor,
    ListenConfig,
    load_with_lora,
    publish,
    save_complete_model,
)
from peft_listen.publishing import _REPLACED_FILES
from tests.small_models import QFORMER


SPEECH, LLM = "openai/whisper-tiny.en", "HuggingFaceTB/SmolLM2-135M-Instruct"
METHODS = {
    "listen": lambda: ListenConfig(
        pool_size=8, prompt_length=2, init_weights=False, modules_to_save=["multi_modal_projector"]
    ),
    "lora": lambda: LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False),
}
ALL = ["speech", "sound", "llm"]


@pytest.fixture(scope="module")
def clip_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("clip") / "clip.wav"
    soundfile.write(path, 0.3 * np.sin(np.arange(8_000) / 10), 16_000)
    return str(path)


@pytest.fixture(scope="module")
def parts(published_parts):
    return {name: str(path) for name, path in published_parts.items()}


@pytest.fixture
def processor(parts):
    return AudioListenProcessor.from_sub_models_pretrained(**parts)


@pytest.fixture
def make_base(parts):
    def make(seed=0):
        torch.manual_seed(seed)
        return AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)

    return make


@pytest.fixture
def make_base_of_the_hub(make_base):
    """A base model whose parts claim to come from the Hub."""

    def make():
        base = make_base()
        names = {"speech_tower": SPEECH, "sound_tower": "someone/beats", "language_model": LLM}
        base.frozen_references = {part: {"name_or_path": name, "revision": "abc"} for part, name in names.items()}
        return base

    return make


def answers(model, processor, clip_path):
    pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=8)
    return pipe(clip_path, text="What is it?")


@pytest.mark.skipif(
    Version(peft.__version__) < Version("0.22") and Version(transformers.__version__) >= Version("5.24"),
    reason="transformers 5.24 disables adapters itself only with PEFT 0.22",
)
@pytest.mark.parametrize("adapter_name", ["default", "mine"])
@pytest.mark.parametrize("method", METHODS)
def test_a_folder_holds_base_adapter_and_processor(make_base, processor, clip_path, tmp_path, method, adapter_name):
    model = get_peft_model(make_base(), METHODS[method](), adapter_name=adapter_name).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.mul_(3)  # so that the adapter changes the answer, and its projector is not that of the base
    save_complete_model(model, processor, tmp_path / "model", include=ALL)
    pipe = pipeline("audio-text-to-text", model=str(tmp_path / "model"), max_new_tokens=8)
    assert pipe(clip_path, text="What is it?") == answers(model, processor, clip_path)
    with model.disable_adapter():
        without = answers(model, processor, clip_path)
    assert without != answers(model, processor, clip_path)

    # The folder can be moved, and the base model in it is the one without the adapter.
    (tmp_path / "model").rename(tmp_path / "moved")
    moved = pipeline("audio-text-to-text", model=str(tmp_path / "moved"), max_new_tokens=8)
    assert moved(clip_path, text="What is it?") == answers(model, processor, clip_path)
    moved.model.disable_adapters()
    if method == "lora":
        assert moved(clip_path, text="What is it?") == without


@pytest.fixture
def make_both(make_base):
    """A model with a LiSTEN and a LoRA adapter, both of which change its output."""

    def make(lora_name="lora"):
        model = get_peft_model(make_base(), METHODS["listen"]())
        inject_adapter_in_model(METHODS["lora"](), model.get_base_model(), adapter_name=lora_name)
        model.set_adapter("default")  # PEFT deactivates the trained projector when it injects another adapter
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.requires_grad and ".lora" not in name:
                    parameter.mul_(3)
        return model.eval()

    return make


def test_a_lora_adapter_beside_the_prompts_is_saved_and_loaded(make_both, make_base, processor, clip_path, tmp_path):
    both = make_both()
    inputs = processor(text=f"{processor.audio_token}What is it?", audio=[clip_path])

    def logits(model):
        with torch.no_grad():
            return model(**inputs).logits

    save_complete_model(both, processor, tmp_path, include=ALL)
    loaded = pipeline("audio-text-to-text", model=str(tmp_path)).model
    torch.testing.assert_close(logits(loaded), logits(both))
    shutil.copytree(tmp_path, tmp_path / "alone")
    shutil.rmtree(tmp_path / "alone" / "lora")
    alone = pipeline("audio-text-to-text", model=str(tmp_path / "alone")).model
    assert (logits(alone) - logits(both)).abs().max() > 1e-3

    # Both can be loaded and saved again.
    base = make_base()
    base.save_pretrained(tmp_path / "base")
    both.save_pretrained(tmp_path / "adapters")
    again = load_with_lora(base, tmp_path / "adapters")
    save_complete_model(again, processor, tmp_path / "again", include=ALL)
    torch.testing.assert_close(
        logits(pipeline("audio-text-to-text", model=str(tmp_path / "again")).model), logits(again)
    )

    # A model without LoRA takes its place.
    save_complete_model(get_peft_model(make_base(), METHODS["listen"]()), processor, tmp_path, include=ALL)
    assert not (tmp_path / "lora" / "adapter_config.json").exists()
    loaded = pipeline("audio-text-to-text", model=str(tmp_path)).model
    assert not any("lora" in name for name, _ in loaded.named_parameters())


def test_another_name_of_the_second_adapter_is_refused(make_both, processor, tmp_path):
    with pytest.raises(ValueError, match="has the adapters default, second, .* LoRA adapter of the name 'lora'"):
        save_complete_model(make_both("second"), processor, tmp_path, include=ALL)
    assert list(tmp_path.iterdir()) == []


def test_a_base_model_without_an_adapter_is_saved_with_its_processor(make_base, processor, clip_path, tmp_path):
    base = make_base()
    save_complete_model(base, processor, tmp_path, include=ALL)
    assert not (tmp_path / "adapter_config.json").exists()
    pipe = pipeline("audio-text-to-text", model=str(tmp_path), max_new_tokens=8)
    assert pipe(clip_path, text="What is it?") == answers(base, processor, clip_path)


def test_saving_leaves_the_model_as_it_was(make_base_of_the_hub, processor, tmp_path):
    model = get_peft_model(make_base_of_the_hub(), METHODS["listen"]())
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for _ in range(2):  # the second replaces the first
        save_complete_model(model, processor, tmp_path, repo_id="me/my-model")
    assert before.keys() == model.state_dict().keys()
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())
    assert trained == [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert model.get_base_model().config.frozen_references is None
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


@pytest.mark.parametrize("include", [[], ["sound"], ["speech", "llm"]])
def test_parts_are_saved_as_references_or_as_weights(make_base_of_the_hub, processor, tmp_path, include):
    from safetensors import safe_open

    model = get_peft_model(make_base_of_the_hub(), METHODS["listen"]())
    save_complete_model(model, processor, tmp_path, repo_id="me/my-model", include=include)
    names = {"speech": "speech_tower", "sound": "sound_tower", "llm": "language_model"}
    config = json.loads((tmp_path / "config.json").read_text())
    assert set(config.get("frozen_references") or {}) == {names[part] for part in names if part not in include}
    with safe_open(tmp_path / "model.safetensors", "pt") as weights:
        saved = {name.split(".")[1] for name in weights.keys() if name.startswith("model.")}
    assert saved == {"multi_modal_projector", *(names[part] for part in include)}
    adapter = json.loads((tmp_path / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "me/my-model" and adapter["revision"] is None


def test_the_card_says_how_to_load_the_model(make_base_of_the_hub, processor, tmp_path):
    model = get_peft_model(make_base_of_the_hub(), METHODS["listen"]())
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# Birds\n")
    save_complete_model(model, processor, tmp_path, repo_id="me/my-model")
    card = (tmp_path / "README.md").read_text()
    assert "# Birds" in card and "license: mit" in card and "library_name: transformers" in card
    assert "import peft_listen" in card and 'model="me/my-model"' in card
    assert "pipeline_tag: audio-text-to-text" in card and f"base_model:adapter:{LLM}" in card


class TestRefusals:
    def test_a_part_that_is_not_on_the_hub(self, make_base, processor, parts, tmp_path):
        with pytest.raises(ValueError, match=r"'speech' was loaded from .* and 'sound' .*include") as error:
            save_complete_model(make_base(), processor, tmp_path / "model", include=["llm"])
        assert parts["sound"] in str(error.value)
        assert not (tmp_path / "model").exists()

    @pytest.mark.parametrize(
        ("part", "weight"),
        [
            ("speech", "model.speech_tower.layers.0.fc1.weight"),
            ("sound", "model.sound_tower.encoder.layers.0.fc1.weight"),
            ("llm", "model.language_model.layers.0.mlp.up_proj.weight"),
            ("llm", "lm_head.weight"),
        ],
    )
    def test_a_trained_part(self, make_base_of_the_hub, processor, tmp_path, part, weight):
        base = make_base_of_the_hub()
        parameter = base.get_parameter(weight)
        parameter.requires_grad_(True)
        with torch.no_grad():
            parameter.fill_(0.5)
        others = [name for name in ALL if name != part]
        for save in (
            lambda: save_complete_model(base, processor, tmp_path / "model"),
            lambda: publish(base, processor, "me/x"),
        ):
            with pytest.raises(ValueError, match=rf"count as trained; pass include=\['{part}'\]"):
                save()
        with pytest.raises(ValueError, match=rf"include=\['{part}'\]"):
            save_complete_model(base, processor, tmp_path / "model", include=others)
        assert not (tmp_path / "model").exists()
        save_complete_model(base, processor, tmp_path / "model", include=[part])
        saved = load_file(tmp_path / "model" / "model.safetensors")
        assert (saved[weight] == 0.5).all()

    @pytest.mark.parametrize("include", ["llm", ["language_model"]])
    def test_an_unknown_part(self, make_base, processor, tmp_path, include):
        with pytest.raises(ValueError, match="`include` must be a list of 'speech', 'sound', 'llm'"):
            save_complete_model(make_base(), processor, tmp_path, include=include)

    def test_a_text_model(self, make_llm, processor, tmp_path):
        with pytest.raises(TypeError, match=r"got a LlamaForCausalLM.*push_to_hub"):
            save_complete_model(
                get_peft_model(make_llm("llama"), LoraConfig(target_modules=["q_proj"])), processor, tmp_path
            )

    def test_several_adapters(self, make_base, processor, tmp_path):
        model = get_peft_model(make_base(), METHODS["lora"]())
        model.add_adapter("second", METHODS["lora"]())
        with pytest.raises(ValueError, match="has the adapters default, second"):
            save_complete_model(model, processor, tmp_path, include=ALL)

    def test_an_adapter_that_the_pipeline_loaded(self, make_base, processor, tmp_path):
        save_complete_model(get_peft_model(make_base(), METHODS["listen"]()), processor, tmp_path / "a", include=ALL)
        model = pipeline("audio-text-to-text", model=str(tmp_path / "a")).model
        with pytest.raises(TypeError, match=r"added by `load_adapter`.*PeftModel\.from_pretrained"):
            save_complete_model(model, processor, tmp_path / "b", include=ALL)


def test_an_adapter_on_a_base_model_in_memory_warns_when_it_is_saved(make_base, processor, tmp_path):
    with pytest.warns(UserWarning, match=r"does not name its base model.*save_complete_model"):
        get_peft_model(make_base(), METHODS["listen"]()).save_pretrained(tmp_path / "adapter")
    make_base().save_pretrained(tmp_path / "base")
    base = AudioListenForCausalLM.from_pretrained(tmp_path / "base")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*does not name its base model")
        get_peft_model(base, METHODS["listen"]()).save_pretrained(tmp_path / "adapter")


@pytest.fixture
def hub_of_parts(hub, published_parts, clip_path, tmp_path):
    """A Hub with the published parts; `tmp_path` is the folder of the user."""
    hub.add_folder(SPEECH, published_parts["speech"])
    hub.add_folder(LLM, published_parts["llm"])
    (tmp_path / "clip.wav").write_bytes(open(clip_path, "rb").read())
    return hub


BUILD = f"""
import json
import torch
import peft_listen
from peft import get_peft_model
from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig

parts = {{"speech": "{SPEECH}", "llm": "{LLM}"}}
processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
base = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config={QFORMER})
base.save_pretrained("my-base", save_frozen=False)
processor.save_pretrained("my-base")
base = AudioListenForCausalLM.from_pretrained("my-base")
config = ListenConfig(pool_size=8, prompt_length=2, init_weights=False, modules_to_save=["multi_modal_projector"])
model = get_peft_model(base, config).eval()
"""
ASK = """
pipe = pipeline("audio-text-to-text", model={model}, max_new_tokens=8{more})
print(json.dumps(pipe("clip.wav", text="What is it?")))
"""


def test_a_model_is_published_and_loaded_by_its_name(hub_of_parts, tmp_path):
    hub, me, you = hub_of_parts, tmp_path, tmp_path / "you"
    publish = """
import warnings
from transformers import pipeline
from peft_listen.analysis import record_dataset
rows = [{"audio": "clip.wav", "instruction": "What is it?", "task": task} for task in ("birds", "dogs")]
selections = record_dataset(pipeline("audio-text-to-text", model=model, processor=processor), rows)
with warnings.catch_warnings():
    warnings.filterwarnings("error", message=".*base model")
    info = peft_listen.publish(model, processor, "me/my-model", tags=["birds"], selections=selections)
assert info.oid
"""
    first = hub.run(BUILD + publish + ASK.format(model="model", more=", processor=processor"), me)

    files = hub.files("me/my-model")
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors", "config.json"} <= set(files)
    assert {"model.safetensors", "processor_config.json", "tokenizer.json"} <= set(files)
    assert not [path for path in files if "/" in path]
    references = hub.json("me/my-model", "config.json")["frozen_references"]
    assert {part: reference["name_or_path"] for part, reference in references.items()} == {
        "speech_tower": SPEECH,
        "language_model": LLM,
    }
    assert hub.json("me/my-model", "adapter_config.json")["base_model_name_or_path"] == "me/my-model"
    assert str(me) not in "".join(content.decode(errors="ignore") for content in files.values())
    assert "birds" in hub.cards[-1] and 'model="me/my-model"' in hub.cards[-1]
    assert "](prompts_by_task.png)" in hub.cards[-1] and "For 2 inputs of 2" in hub.cards[-1]
    assert files["prompts_by_task.png"].startswith(b"\x89PNG")

    you.mkdir()
    (you / "clip.wav").write_bytes((me / "clip.wav").read_bytes())
    load = "import json\nimport peft_listen\nfrom transformers import pipeline\n"
    loaded = hub.run(load + ASK.format(model='"me/my-model"', more=""), you)
    assert json.loads(loaded.stdout) == json.loads(first.stdout)

    # The same as a PeftModel, whose methods are there, and which can be trained on.
    peft = """
import json
import peft_listen
from peft import PeftModel
from transformers import pipeline
base = peft_listen.AudioListenForCausalLM.from_pretrained("me/my-model")
model = PeftModel.from_pretrained(base, "me/my-model").eval()
processor = peft_listen.AudioListenProcessor.from_pretrained("me/my-model")
"""
    as_peft = hub.run(peft + ASK.format(model="model", more=", processor=processor"), you)
    assert json.loads(as_peft.stdout) == json.loads(first.stdout)


def test_publishing_again_replaces_the_model_and_keeps_the_card(hub_of_parts, tmp_path):
    code = """
from huggingface_hub import ModelCard

peft_listen.publish(base, processor, "me/my-model", include=["speech", "llm"])
card = ModelCard.load("me/my-model")
card.data.license = "mit"
card.push_to_hub("me/my-model")
model.set_prompt_length(1)
peft_listen.publish(model, processor, "me/my-model")
peft_listen.publish(model, processor, "me/my-model", revision="next", commit_message="Next")
"""
    build = BUILD.replace("model = get_peft_model", "import copy\nmodel = get_peft_model").replace(
        "(base, config)", "(copy.deepcopy(base), config)"
    )
    hub_of_parts.run(build + code, tmp_path)
    assert hub_of_parts.json("me/my-model", "adapter_config.json")["prompt_length"] == 1
    assert len(hub_of_parts.json("me/my-model", "config.json")["frozen_references"]) == 2
    assert "license: mit" in hub_of_parts.files("me/my-model")["README.md"].decode()
    assert set(hub_of_parts.repositories["me/my-model"].branches) == {"main", "next"}


def test_files_of_an_older_version_are_replaced_but_not_those_of_subfolders():
    weights = ["model", "adapter_model"]
    endings = [".safetensors", "-00001-of-00003.safetensors", ".safetensors.index.json"]
    files = [name + ending for name in weights for ending in endings]
    others = [f"{folder}{file}" for folder in ("second/", "model/", "model-00001/") for file in files] + [
        "my.safetensors"
    ]
    assert sorted(filter_repo_objects([*files, *others], allow_patterns=_REPLACED_FILES)) == sorted(files)


@pytest.mark.slow
def test_publishing_a_base_model_removes_the_adapter(hub_of_parts, tmp_path):
    code = """
peft_listen.publish(model, processor, "me/my-model")
peft_listen.publish(AudioListenForCausalLM.from_pretrained("my-base"), processor, "me/my-model")
"""
    hub_of_parts.run(BUILD + code, tmp_path)
    files = hub_of_parts.files("me/my-model")
    assert "model.safetensors" in files and not [file for file in files if file.startswith("adapter_")]


def test_pushing_an_adapter_on_a_local_base_model_warns(hub_of_parts, tmp_path):
    code = """
import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    model.push_to_hub("me/my-adapter")
(warning,) = [each for each in caught if "adapter that is pushed" in str(each.message)]
print(warning.message)
"""
    result = hub_of_parts.run(BUILD + code, tmp_path)
    assert "names the local folder 'my-base' as its base model, so nobody else can load it" in result.stdout
    assert "peft_listen.publish(model, processor, repo_id)" in result.stdout
    assert "adapter_model.safetensors" in hub_of_parts.files("me/my-adapter")


@pytest.mark.slow
def test_the_card_of_a_base_model_says_what_to_import(hub_of_parts, tmp_path):
    hub_of_parts.run(
        BUILD + 'base = AudioListenForCausalLM.from_pretrained("my-base")\nbase.push_to_hub("me/base")', tmp_path
    )
    card = hub_of_parts.files("me/base")["README.md"].decode()
    assert "import peft_listen" in card and 'model="me/base"' in card
    assert "An audio model made of [" in card and f"[{SPEECH}](https://huggingface.co/{SPEECH})" in card
    assert "tags: []" not in card
