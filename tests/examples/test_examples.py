"""Every example runs as a script, with small models in place of the published ones."""

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    pipeline,
)

import peft_listen
from peft_listen.models.audio_listen.configuration_audio_listen import QFORMER_DEFAULTS
from tests.embeds_server import serving
from tests.small_models import (
    CHAT_IDS,
    CHAT_VOCAB_SIZE,
    QFORMER,
    SIZES,
    make_chat_tokenizer,
    make_whisper_config,
    save_published_parts,
    write_wav,
)


FOLDER = Path(__file__).parents[2] / "examples"
LLM, SPEECH = "HuggingFaceTB/SmolLM2-135M-Instruct", "openai/whisper-tiny.en"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small models at the paths that are the Hub's names."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=CHAT_VOCAB_SIZE, **SIZES, **CHAT_IDS)).save_pretrained(folder / LLM)
    make_chat_tokenizer().save_pretrained(folder / LLM)
    WhisperForConditionalGeneration(make_whisper_config()).save_pretrained(folder / SPEECH)
    WhisperFeatureExtractor().save_pretrained(folder / SPEECH)
    return folder


@pytest.fixture
def run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Runs an example in an empty folder beside the models, and returns what it prints."""
    for name in ("HuggingFaceTB", "openai"):
        (tmp_path / name).symlink_to(models / name)
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(FOLDER / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def write_rows(path: str, rows: list[dict]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_every_example_is_tested_and_fits_on_a_page() -> None:
    files = {path.name: path for path in FOLDER.iterdir() if path.suffix == ".py"}
    tested = {"text_adapter.py", "audio_adapter.py", "sft_with_lora.py", "custom_selector.py", "vllm_client.py"}
    assert set(files) == tested
    for path in files.values():
        assert len(path.read_text(encoding="utf-8").splitlines()) < 100


@pytest.mark.parametrize("own_data", [False, True])
def test_a_text_adapter_is_trained_and_can_be_loaded(run: Callable, own_data: bool) -> None:
    arguments = ["--steps", 2]
    if own_data:
        write_rows("train.jsonl", [{"instruction": "What is said?", "answer": "fox", "source": "own"}] * 3)
        arguments += ["--data", "train.jsonl"]
    output = run("text_adapter.py", *arguments)
    assert ("What is said?" if own_data else "What is the capital of France?") in output
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(LLM), "text-adapter")
    assert model.peft_config["default"].pool_size == 16


def test_an_audio_adapter_is_trained_on_own_clips(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QFORMER.items():  # a projector of the default size takes seconds to save
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    rows = [
        {"audio": f"clip{index}.wav", "instruction": "What do you hear?", "answer": answer, "task": "sounds"}
        for index, answer in enumerate(("a dog", "a cat"))
    ]
    for index, row in enumerate(rows):
        write_wav(Path(row["audio"]), seed=index)
    write_rows("train.jsonl", [*rows, {"audio": None, "instruction": "Who?", "answer": "a fox", "task": "text"}])
    output = run("audio_adapter.py", "--data", "train.jsonl", "--steps", 2, "--batch_size", 3)
    assert "clip0.wav: What do you hear? " in output and "None: Who? " in output
    assert Path("audio-adapter/adapter/adapter_config.json").is_file()
    # The base model and the encoder outputs of the first run are used again.
    before = Path("audio-adapter/base/model.safetensors").stat().st_mtime_ns
    run("audio_adapter.py", "--data", "train.jsonl", "--steps", 1)
    assert Path("audio-adapter/base/model.safetensors").stat().st_mtime_ns == before


def test_listen_lora_and_both_are_compared(run: Callable) -> None:
    output = run("sft_with_lora.py", "--steps", 2, "--batch_size", 2)
    rows = [line.strip("| ").split(" | ") for line in output.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["lora", "listen", "listen + lora"]
    lora, listen, both = (int(row[1]) for row in rows)
    assert listen == (2 * 16 + 4) * 32 and both == lora + listen
    assert all(float(row[2]) > 0 for row in rows)
    assert all(Path(f"sft/{name}/adapter_config.json").is_file() for name in ("lora", "listen", "listen-lora"))


def test_an_own_selector_is_trained_and_recorded(run: Callable) -> None:
    registry = sys.modules[peft_listen.Selector.__module__]._SELECTORS
    registered = dict(registry)
    try:
        output = run("custom_selector.py", "--steps", 8, "--temperature", 0.3)
        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(LLM), "custom-selector")
        assert model.peft_config["default"].selector == "soft_cosine"
    finally:
        registry.clear()
        registry.update(registered)
    rows = output.splitlines()[-4:]
    assert all(" prompts [" in row and ", weights [" in row for row in rows)
    for row in rows:
        weights = json.loads(row.partition("weights ")[2])
        assert sum(weights) == pytest.approx(4, abs=0.03)


def test_a_server_without_the_adapters_answers_as_each_of_them(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QFORMER.items():
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    write_wav(Path("dog.wav"))
    saved = save_published_parts(Path("parts"))
    parts = {name: str(saved[name]) for name in ("speech", "llm")}
    processor = peft_listen.AudioListenProcessor.from_sub_models_pretrained(**parts)
    base = peft_listen.AudioListenForCausalLM.from_sub_models_pretrained(**parts, tokenizer=processor.tokenizer)
    for part in (base, processor):
        part.save_pretrained("base")
    for seed, name in enumerate(("one", "two")):
        base = peft_listen.AudioListenForCausalLM.from_pretrained("base")
        config = peft_listen.ListenConfig(pool_size=16, prompt_length=4, init_weights=False, seed=seed)
        get_peft_model(base, config).save_pretrained(name)

    question, answers = "What do you hear?", {}
    with serving(AutoModelForCausalLM.from_pretrained(parts["llm"]), processor.tokenizer) as url:
        for name in ("one", "two"):
            output = run("vllm_client.py", "dog.wav", question, "--model", name, "--url", url, "--max_tokens", 8)
            pipe = pipeline("audio-text-to-text", model=name, max_new_tokens=8)
            answers[name] = pipe("dog.wav", text=question)[0]["generated_text"]
            assert output == answers[name] + "\n"
    assert answers["one"] != answers["two"]
