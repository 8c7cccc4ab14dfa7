"""
A run with `push_to_hub` creates the repository before it begins, and uploads the model once, at its end or when it is
finished, with its scores.
"""

import pickle
import shutil

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from transformers import TrainerCallback

from tests import small_models


ALL_PARTS = ["speech", "sound", "llm"]

RUN = """
import json
from peft_listen.models.audio_listen.configuration_audio_listen import QFORMER_DEFAULTS
from peft_listen_cli import main

QFORMER_DEFAULTS.update({qformer})
row = {{"audio": "clip.wav", "instruction": "What?", "answer": "dog", "task": "sounds"}}
other = {{**row, "instruction": "Who?", "task": "speakers"}}
open("rows.jsonl", "w").write(json.dumps(row) + "\\n" + json.dumps(other))
command = ["train", "--speech", "openai/whisper", "--llm", "some/llama", "--train-data", "rows.jsonl", "--use-cpu"]
command += ["--test-data", "rows.jsonl", "--max-steps", "2", "--save-steps", "1", "--listen-pool-size", "6"]
command += ["--listen-prompt-length", "2", "--listen-ignore-template", "false", "--max-new-tokens", "3"]
command += ["--adapter", "{adapter}"]
if {is_finished}:
    assert main(command) == 0
assert main([*command, "--push-to-hub", "--hub-model-id", "me/trained"]) == 0
assert json.load(open("output/result.json"))["uploaded_to"] == "me/trained"
"""
ASK = """
from peft_listen_cli import main

assert main(["ask", "clip.wav", "What?", "--model", "me/trained", "--max-new-tokens", "3"]) == 0
from transformers import pipeline

names = {{name for name, _ in pipeline("audio-text-to-text", model="me/trained").model.named_parameters()}}
assert any("listen_pools" in name for name in names)
assert any(".lora_A.lora." in name for name in names) == ({adapter!r} == "listen+lora")
"""


@pytest.mark.slow  # two processes import torch
@pytest.mark.parametrize(("adapter", "is_finished"), [("listen", True), ("listen+lora", False)])
def test_the_model_is_uploaded_with_its_scores(hub, published_parts, clips, tmp_path, adapter, is_finished):
    hub.add_folder("openai/whisper", published_parts["speech"])
    hub.add_folder("some/llama", published_parts["llm"])
    shutil.copy(clips[0], tmp_path / "clip.wav")
    hub.run(RUN.format(qformer=small_models.QFORMER, adapter=adapter, is_finished=is_finished), tmp_path)
    files = hub.files("me/trained")
    assert {"adapter_model.safetensors", "adapter_config.json", "config.json", "README.md"} <= files.keys()
    card = files["README.md"].decode()
    assert "## Scores" in card and "| sounds | 1 | exact_match |" in card and "model-index" in card
    assert "| speech encoder | [openai/whisper](https://huggingface.co/openai/whisper) |" in card
    assert "| steps | 2 |" in card and "peft-listen train --speech openai/whisper --llm some/llama" in card
    assert "](prompts_by_task.png)" in card and files["prompts_by_task.png"].startswith(b"\x89PNG")
    assert len(hub.repositories["me/trained"].commits) <= 2  # not one for each checkpoint
    assert ("lora/adapter_model.safetensors" in files) == (adapter == "listen+lora")
    hub.run(ASK.format(adapter=adapter), tmp_path)


@pytest.fixture
def own_hub(hub, monkeypatch, tmp_path):
    """The Hub, for this process."""
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_the_test")
    return hub


class Interrupt(TrainerCallback):
    """Interrupts the training after a step, and keeps the names of the repositories that there are at the first one."""

    def __init__(self, hub, step):
        self.hub, self.step, self.repositories = hub, step, None

    def on_step_begin(self, args, state, control, **kwargs):
        if self.repositories is None:
            self.repositories = list(self.hub.repositories)
        if state.global_step == self.step:
            raise KeyboardInterrupt


def is_raised_in_all_processes(error):
    """Whether processes other than the main one raise an error of the same type, which the command prints without a traceback."""
    copied = pickle.loads(pickle.dumps(error))
    return type(copied) is type(error) and str(copied) == str(error)


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        ("other/new", "hf_token", '403 Forbidden: You don\'t have the rights to write under the namespace "other"'),
        ("other/there", "hf_token", '403 Forbidden: You don\'t have the rights to write under the namespace "other"'),
        ("me/new", "", "401 Unauthorized"),
    ],
)
def test_a_repository_that_cannot_be_written_to_is_refused_before_the_data_are_read(
    own_hub, make_run, tmp_path, monkeypatch, name, token, message
):
    own_hub.create("other/there")
    monkeypatch.setenv("HF_TOKEN", token)
    run = make_run(train_data=[str(tmp_path / "none.jsonl")], push_to_hub=True, hub_model_id=name)
    with pytest.raises(HfHubHTTPError) as error:
        run.run()
    assert message in str(error.value) and "Log in with `hf auth login`" in str(error.value)
    assert f"{name!r}" in str(error.value) and is_raised_in_all_processes(error.value)
    assert list(own_hub.repositories) == ["other/there"] and not (tmp_path / "run").exists()


def test_without_the_hub_a_run_with_an_upload_does_not_begin(own_hub, make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    run = make_run(train_data=[str(tmp_path / "none.jsonl")], push_to_hub=True, hub_model_id="me/x")
    with pytest.raises(
        ConnectionError, match=r"cannot be reached: .*HF_HUB_OFFLINE.* leave out `push_to_hub`; with it"
    ):
        run.run()
    assert not own_hub.repositories and not (tmp_path / "run").exists()


def test_parts_that_others_cannot_load_are_refused_before_the_training(own_hub, make_run):
    interrupt = Interrupt(own_hub, 0)
    with pytest.raises(ValueError, match="Only parts on the Hub can be published"):
        make_run(push_to_hub=True, hub_model_id="me/x", callbacks=[interrupt]).run()
    assert interrupt.repositories is None


def test_the_repository_is_there_before_the_first_step_and_a_resumed_run_uploads_to_it(
    own_hub, make_run, tmp_path, monkeypatch
):
    options = {"push_to_hub": True, "hub_include": ALL_PARTS, "hub_revision": "trained"}
    interrupt = Interrupt(own_hub, 2)
    with pytest.raises(KeyboardInterrupt):
        make_run(**options, callbacks=[interrupt]).run()
    assert interrupt.repositories == ["me/run"]  # named after the folder, owned by the account
    assert own_hub.files("me/run", "trained") == {}
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(HfHubHTTPError, match="401"):
        make_run(**options).run()
    monkeypatch.setenv("HF_TOKEN", "hf_token_of_the_test")
    assert make_run(**options).run().uploaded_to == "me/run"
    assert {"adapter_model.safetensors", "README.md"} <= own_hub.files("me/run", "trained").keys()
    assert own_hub.files("me/run") == {}
    # What is finished and uploaded is shown without the Hub.
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert make_run(**options).run().was_finished
