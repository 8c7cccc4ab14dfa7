"""Model cards of adapters, in folders and on a minimal Hub server on 127.0.0.1."""

import re
import shlex

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig, model_card, register
from peft_listen.model_card import _write_card
from tests.small_models import QFORMER


CONFIGS = {
    "listen": lambda **kwargs: ListenConfig(pool_size=8, prompt_length=2, selector="residual", **kwargs),
    "lora": lambda **kwargs: LoraConfig(target_modules=r".*q_proj", **kwargs),
}


@pytest.fixture
def make_adapter(published_parts, make_llm):
    def make(method, base="audio", **kwargs):
        if base == "audio":
            model = AudioListenForCausalLM.from_sub_models_pretrained(**published_parts, qformer_config=QFORMER)
        else:
            model = make_llm("llama")
        model.name_or_path = "someone/base"
        return get_peft_model(model, CONFIGS[method](**kwargs))

    return make


def snippets(card):
    return re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)


class TestSavedCards:
    @pytest.mark.parametrize("task_type", [None, "CAUSAL_LM"])
    def test_card_of_an_audio_adapter(self, make_adapter, tmp_path, task_type):
        model = make_adapter("listen", task_type=task_type, modules_to_save=["multi_modal_projector"])
        model.save_pretrained(tmp_path / "adapter")
        card = ModelCard.load(tmp_path / "adapter" / "README.md")
        assert card.data.library_name == "peft"
        assert card.data.pipeline_tag == "audio-text-to-text"
        assert card.data.tags == ["base_model:adapter:someone/base", "listen", "transformers"]
        assert card.data.base_model == ["someone/base"]
        assert "2 soft prompts are selected from a pool of 8 (`selector='residual'`)" in card.text
        assert "[someone/base](https://huggingface.co/someone/base)" in card.text
        assert "its own `multi_modal_projector`" in card.text
        (snippet,) = snippets(card)
        assert snippet.startswith("import peft_listen")
        assert 'pipeline("audio-text-to-text", model="adapter")' in snippet
        assert re.search(r"### Framework versions\n\n- PEFT .*\n- peft-listen ", card.text)
        assert "More Information Needed" not in card.text
        limits = card.text.partition("## Limits")[2].partition("## Citation")[0]
        assert "speech or sounds that a clip does not contain" in limits
        assert "licenses and the limits of [someone/base](https://huggingface.co/someone/base) apply" in limits

    def test_card_of_a_text_adapter(self, make_adapter, tmp_path):
        make_adapter("listen", base="text").save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.pipeline_tag == "text-generation"
        assert "listen" in card.data.tags
        (snippet,) = snippets(card)
        assert snippet.startswith("import peft_listen") and "AutoPeftModelForCausalLM" in snippet
        assert "## Limits" in card.text and "a clip" not in card.text

    def test_card_of_another_adapter_on_an_audio_model(self, make_adapter, tmp_path):
        make_adapter("lora").save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.pipeline_tag == "audio-text-to-text"
        assert "lora" in card.data.tags and "listen" not in card.data.tags
        assert "A LORA adapter on" in card.text and snippets(card)[0].startswith("import peft_listen")

    def test_other_adapters_keep_the_card_of_peft(self, make_adapter, tmp_path):
        make_adapter("lora", base="text").save_pretrained(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert "peft_listen" not in text and "listen" not in (ModelCard.load(tmp_path / "README.md").data.tags or [])

    @pytest.mark.parametrize(("version", "source"), [("0.2.0.dev3", " @ git+https://"), ("0.2.0", '"')])
    def test_a_card_installs_the_package_from_where_its_version_is(
        self, make_adapter, tmp_path, monkeypatch, version, source
    ):
        monkeypatch.setattr(model_card, "__version__", version)
        make_adapter("listen").save_pretrained(tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert f'\npip install "peft-listen[audio]{source}' in text
        (command,) = re.findall(r"^pip install .*", text, flags=re.MULTILINE)
        assert len(shlex.split(command)) == 3

    def test_saving_again_changes_nothing(self, make_adapter, tmp_path):
        model = make_adapter("listen")
        model.save_pretrained(tmp_path)
        first = (tmp_path / "README.md").read_text()
        model.save_pretrained(tmp_path)
        assert (tmp_path / "README.md").read_text() == first

    def test_an_edited_card_is_kept_and_completed(self, make_adapter, tmp_path):
        written = (
            "---\nlicense: mit\ntags:\n- birds\npipeline_tag: audio-classification\n---\n# Birds\n\nIt knows birds.\n"
        )
        (tmp_path / "README.md").write_text(written)
        make_adapter("listen").save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.license == "mit" and card.data.pipeline_tag == "audio-classification"
        assert {"birds", "listen"} <= set(card.data.tags)
        assert card.text.strip().startswith("# Birds\n\nIt knows birds.")
        assert len(snippets(card)) == 1

    def test_a_local_folder_is_not_the_base_model_on_the_hub(self, make_adapter, tmp_path):
        model = make_adapter("listen")
        base = model.get_base_model()
        base.name_or_path = base.config.name_or_path = str(tmp_path)
        model.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model == str(tmp_path)  # as PEFT writes it
        _write_card(model, tmp_path / "README.md", "me/my-adapter", lambda folder: None, for_hub=True)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model is None and str(tmp_path) not in str(card)

        base.frozen_references = {"speech_tower": {"name_or_path": "openai/whisper-tiny.en"}, "language_model": {}}
        (tmp_path / "README.md").unlink()
        model.save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.base_model == ["openai/whisper-tiny.en"]
        assert "base_model:adapter:openai/whisper-tiny.en" in card.data.tags

    def test_the_parts_are_listed_with_the_licenses_of_their_own_cards(self, make_adapter, tmp_path, monkeypatch):
        model = make_adapter("listen")
        folder = tmp_path / "my-llm"
        folder.mkdir()
        commit = "a" * 40
        cached = tmp_path / "cache" / "models--openai--whisper-x" / "snapshots" / commit
        cached.mkdir(parents=True)
        (cached / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Whisper\n")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        model.get_base_model().frozen_references = {
            "speech_tower": {"name_or_path": "openai/whisper-x", "revision": commit},
            "sound_tower": {"name_or_path": "someone/beats"},
            "language_model": {"name_or_path": str(folder)},
        }

        def rows():
            model.save_pretrained(tmp_path / "adapter")
            card = ModelCard.load(tmp_path / "adapter" / "README.md")
            assert card.text.count("## Parts") == 1 and str(tmp_path) not in card.text
            assert card.text.index("## Parts") < card.text.index("## Citation")
            return re.findall(r"^\| ((?:language|speech|sound) .*) \|$", card.text, flags=re.MULTILINE)

        language = "language model | `my-llm` (a local copy) | "
        others = [
            "speech encoder | [openai/whisper-x](https://huggingface.co/openai/whisper-x) | apache-2.0",
            "sound encoder | [someone/beats](https://huggingface.co/someone/beats) | "
            "its license applies: [model card](https://huggingface.co/someone/beats)",
        ]
        assert rows() == [f"{language}its license applies", *others]
        for metadata, shown in {
            "license: llama3.2": "llama3.2",
            "license: other\nlicense_name: tongyi-qianwen": "tongyi-qianwen",
            "license: other": "other",
            # Somebody else's file, which must not change the card around it.
            "license: 'mit | x'": "its license applies",
            "license: [mit]": "its license applies",
            "license: {": "its license applies",
            f"license: mit\nx: {'y' * (1 << 20)}": "its license applies",
        }.items():
            (folder / "README.md").write_text(f"---\n{metadata}\n---\n")
            assert rows() == [language + shown, *others], metadata[:40]

    def test_a_base_without_known_parts_has_no_table(self, make_adapter, tmp_path):
        model = make_adapter("listen")
        model.get_base_model().frozen_references = {}
        model.save_pretrained(tmp_path)
        assert "## Parts" not in (tmp_path / "README.md").read_text()

    def test_registering_again_changes_nothing(self):
        methods = PeftModel.create_or_update_model_card, PeftModel._upload_modified_files
        register()
        assert methods == (PeftModel.create_or_update_model_card, PeftModel._upload_modified_files)


def test_an_adapter_is_pushed_to_the_hub_with_its_card_and_loaded_again(published_parts, hub, tmp_path):
    parts = {name: str(published_parts[name]) for name in ("speech", "llm")}
    model = AudioListenForCausalLM.from_sub_models_pretrained(**parts, qformer_config=QFORMER)
    model.save_pretrained(tmp_path / "base")
    AudioListenProcessor.from_sub_models_pretrained(**parts).save_pretrained(tmp_path / "base")
    soundfile.write(tmp_path / "clip.wav", 0.3 * np.sin(np.arange(8_000) / 10), 16_000)
    push = """
        import peft_listen
        from huggingface_hub import ModelCard
        from peft import get_peft_model

        peft_listen.AudioListenForCausalLM.from_pretrained("base").push_to_hub("me/my-base")
        peft_listen.AudioListenProcessor.from_pretrained("base").push_to_hub("me/my-base")
        base = peft_listen.AudioListenForCausalLM.from_pretrained("me/my-base")
        config = peft_listen.ListenConfig(pool_size=8, prompt_length=2, init_weights=False, task_type="CAUSAL_LM")
        model = get_peft_model(base, config)
        model.push_to_hub("me/my-adapter", tags=["birds"])

        card = ModelCard.load("me/my-adapter")
        card.text = card.text.replace("# me/my-adapter", "# Birds")
        card.data.license = "mit"
        card.push_to_hub("me/my-adapter")
        model.push_to_hub("me/my-adapter")
        """
    hub.run(push, tmp_path)

    assert set(hub.files("me/my-adapter")) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert hub.json("me/my-adapter", "adapter_config.json")["base_model_name_or_path"] == "me/my-base"
    first, edited, last = (ModelCard(card) for card in hub.cards[-3:])
    for card in (first, edited, last):
        assert card.data.library_name == "peft"
        assert card.data.pipeline_tag == "audio-text-to-text"
        assert card.data.tags == ["base_model:adapter:me/my-base", "birds", "listen", "transformers"]
        assert card.data.base_model == ["me/my-base"]
        (snippet,) = snippets(card)
        assert snippet.startswith("import peft_listen")
    assert first.text.strip().startswith("# me/my-adapter")
    # Edits on the Hub are kept when the adapter is pushed again.
    assert last.text.strip().startswith("# Birds") and last.data.license == "mit"
    assert str(last).strip() == str(edited).strip()

    # The code in the card works in a process that has only the Hub.
    result = hub.run(snippet + 'print(pipe("clip.wav", max_new_tokens=2))', tmp_path)
    assert "generated_text" in result.stdout
