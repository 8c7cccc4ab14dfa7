"""An adapter on an audio language model of transformers is published with the processor, and names its base model on the Hub."""

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM, AutoProcessor

from peft_listen import ListenConfig, add_lora, publish, save_complete_model
from tests import small_audio_llms


NAME = "Qwen/Qwen2-Audio-7B-Instruct"
LORA = LoraConfig(target_modules=r".*language_model.*q_proj", init_lora_weights=False)


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    return str(small_audio_llms.save(small_audio_llms.QWEN2_AUDIO, tmp_path_factory.mktemp("base") / "qwen"))


@pytest.fixture
def base(base_folder):
    """A base model that claims to come from the Hub."""
    base = AutoModelForMultimodalLM.from_pretrained(base_folder)
    base.name_or_path = NAME
    return base


@pytest.fixture
def processor(base_folder):
    return AutoProcessor.from_pretrained(base_folder)


def adapted(base, kind):
    if kind == "lora":
        return get_peft_model(base, LORA)
    model = get_peft_model(base, ListenConfig(pool_size=8, prompt_length=2, task_type="CAUSAL_LM"))
    return add_lora(model, LORA) if kind == "listen+lora" else model


@pytest.mark.parametrize("kind", ["listen", "lora", "listen+lora"])
def test_a_folder_holds_adapter_processor_and_card(kind, base, processor, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")  # of another model, which would be loaded
    save_complete_model(adapted(base, kind), processor, tmp_path / "model", repo_id="me/my-adapter")
    names = {
        path.relative_to(tmp_path / "model").as_posix() for path in (tmp_path / "model").rglob("*") if path.is_file()
    }
    expected = {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "processor_config.json",
    }
    assert names >= expected and "config.json" not in names and "model.safetensors" not in names
    assert ("lora/adapter_model.safetensors" in names) == (kind == "listen+lora")
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == NAME
    assert config["peft_type"] == ("LORA" if kind == "lora" else "LISTEN")
    tensors = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert all("lora" in name if kind == "lora" else "listen" in name for name in tensors)
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.base_model in (NAME, [NAME]) and card.data.library_name == "peft"
    assert card.data.pipeline_tag == "audio-text-to-text" and f"base_model:adapter:{NAME}" in card.data.tags
    assert 'model="me/my-adapter"' in card.text and str(tmp_path) not in card.content


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"include": ["llm"]},
            "`include` is for the parts of an AudioListenForCausalLM, and the base model is a Qwen2Audio",
        ),
        (
            {},
            r"would name '.*qwen' as its base model, which others cannot load\. Load the Qwen2Audio.* by its name on the Hub",
        ),
    ],
)
def test_what_others_could_not_load_is_refused(change, message, base, base_folder, processor, tmp_path):
    base.name_or_path = base_folder
    model = adapted(base, "listen")
    for call in (
        lambda: save_complete_model(model, processor, tmp_path / "m", **change),
        lambda: publish(model, processor, "me/x", **change),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert not (tmp_path / "m").exists()


def test_a_base_model_without_an_adapter_is_refused(base, processor, tmp_path):
    with pytest.raises(TypeError, match="is published without its base model, and this one has no adapter"):
        save_complete_model(base, processor, tmp_path / "m")


PUBLISH = f"""
import json
import peft_listen
from peft import LoraConfig, get_peft_model
from peft_listen import ListenConfig
from transformers import AutoModelForMultimodalLM, AutoProcessor, pipeline

base = AutoModelForMultimodalLM.from_pretrained("{NAME}")
processor = AutoProcessor.from_pretrained("{NAME}")
config = ListenConfig(pool_size=8, prompt_length=2, init_weights=False, task_type="CAUSAL_LM")
model = peft_listen.add_lora(
    get_peft_model(base, config),
    LoraConfig(target_modules=".*language_model.*q_proj", init_lora_weights=False),
).eval()
peft_listen.publish(model, processor, "me/my-adapter")
pipe = pipeline("audio-text-to-text", model=model, processor=processor, max_new_tokens=8)
print(json.dumps(pipe("clip.wav", text="What is it?")))
"""
ASK = """
import json
from peft_listen.pipelines.loading import load_pipeline
from transformers import AutoProcessor

assert type(AutoProcessor.from_pretrained("me/my-adapter")).__name__ == "Qwen2AudioProcessor"
pipe = load_pipeline("me/my-adapter", device="cpu")
print(json.dumps(pipe("clip.wav", text="What is it?", max_new_tokens=8)))
"""


@pytest.mark.slow  # two processes import torch
def test_an_adapter_is_published_and_loaded_by_its_name(hub, base_folder, clips, tmp_path):
    hub.add_folder(NAME, Path(base_folder))
    (tmp_path / "clip.wav").write_bytes(open(clips[0], "rb").read())
    published = hub.run(PUBLISH, tmp_path)
    assert {"adapter_model.safetensors", "lora/adapter_model.safetensors", "README.md"} <= set(
        hub.files("me/my-adapter")
    )
    assert NAME in hub.files("me/my-adapter")["README.md"].decode()
    loaded = hub.run(ASK, tmp_path)
    assert json.loads(loaded.stdout) == json.loads(published.stdout)
