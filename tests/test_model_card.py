"""Model cards of adapters, in folders and on a minimal Hub server on 127.0.0.1."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import textwrap
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, ListenConfig, register
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

    def test_card_of_a_text_adapter(self, make_adapter, tmp_path):
        make_adapter("listen", base="text").save_pretrained(tmp_path)
        card = ModelCard.load(tmp_path / "README.md")
        assert card.data.pipeline_tag == "text-generation"
        assert "listen" in card.data.tags
        (snippet,) = snippets(card)
        assert snippet.startswith("import peft_listen") and "AutoPeftModelForCausalLM" in snippet

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

    def test_registering_again_changes_nothing(self):
        methods = PeftModel.create_or_update_model_card, PeftModel._upload_modified_files
        register()
        assert methods == (PeftModel.create_or_update_model_card, PeftModel._upload_modified_files)


class SmallHub(BaseHTTPRequestHandler):
    """The part of the Hub's interface that pushing and loading need. Stores the files of repositories and all past cards."""

    repositories: dict[str, dict[str, bytes]]
    cards: list[str]
    num_commits: int
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    @property
    def revision(self):
        return f"{self.num_commits:040x}"

    def answer(self, status=200, content=b"", **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def do_POST(self):
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match = re.match(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if self.path == "/api/repos/create":
            wanted = json.loads(content)
            name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
            self.repositories.setdefault(name, {})
            self.answer(content={"url": f"http://{self.headers['Host']}/{name}", "name": name})
        elif self.path == "/api/validate-yaml":
            self.answer(content={"errors": [], "warnings": []})
        elif match and match[2] == "preupload":
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(content)["files"]]
            self.answer(content={"files": [{**file, "shouldIgnore": False} for file in files]})
        elif match:
            for line in content.splitlines():
                part = json.loads(line)
                if part["key"] == "file":
                    file = base64.b64decode(part["value"]["content"])
                    self.repositories[match[1]][part["value"]["path"]] = file
                    if part["value"]["path"] == "README.md":
                        self.cards.append(file.decode())
            type(self).num_commits += 1
            url = f"http://{self.headers['Host']}/{match[1]}/commit/{self.revision}"
            self.answer(content={"commitUrl": url, "commitOid": self.revision, "success": True})
        else:
            self.answer(404)

    def do_GET(self):
        resolve = re.match(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+?)(\?|$)", self.path)
        tree = re.match(r"/api/models/([^/]+/[^/]+)/tree/[^/]+/?(.*?)(\?|$)", self.path)
        info = re.match(r"/api/models/([^/]+/[^/]+?)(/revision/main)?(\?|$)", self.path)
        name = (resolve or tree or info or ["", ""])[1]
        files = self.repositories.get(name)
        if files is None:
            self.answer(404, X_Error_Code="RepoNotFound")
        elif tree:
            found = {file: content for file, content in files.items() if file.startswith(tree[2])}
            entries = [{"type": "file", "path": file, "size": len(found[file]), "oid": ""} for file in found]
            if found:
                self.answer(content=entries)
            else:
                self.answer(404, X_Error_Code="EntryNotFound")
        elif info:
            siblings = [{"rfilename": file} for file in files]
            self.answer(content={"id": name, "modelId": name, "sha": self.revision, "siblings": siblings, "tags": []})
        elif resolve[2] not in files:
            self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=self.revision)
        else:
            content = files[resolve[2]]
            self.answer(content=content, ETag=f'"{hashlib.sha256(content).hexdigest()}"', X_Repo_Commit=self.revision)

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub():
    handler = type("Handler", (SmallHub,), {"repositories": {}, "cards": [], "num_commits": 0})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()


def run(code, folder, endpoint):
    """Runs code in a new process that uses this Hub and shares no models with this process."""
    environment = {
        **os.environ,
        "HF_ENDPOINT": endpoint,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder / "cache"),
        "HF_TOKEN": "hf_token_of_the_test",
    }
    command = [sys.executable, "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_an_adapter_is_pushed_to_the_hub_with_its_card_and_loaded_again(published_parts, hub, tmp_path):
    endpoint, handler = hub
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
    run(push, tmp_path, endpoint)

    files = handler.repositories["me/my-adapter"]
    assert set(files) == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/my-base"
    first, edited, last = (ModelCard(card) for card in handler.cards[-3:])
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
    answer = run(snippet + 'print(pipe("clip.wav", max_new_tokens=2))', tmp_path, endpoint)
    assert "generated_text" in answer
