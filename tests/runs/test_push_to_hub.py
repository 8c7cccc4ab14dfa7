"""A run with `push_to_hub` uploads the model once, at its end or when it is finished, with its scores."""

import shutil

import pytest

from tests import small_models


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
