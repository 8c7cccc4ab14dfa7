"""Whisper with a shorter context: the same weights, fewer positions, and features of the length that they take."""

import numpy as np
import pytest
import torch
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from offline.short_context import shorten_context


@pytest.fixture(scope="module")
def whisper_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    torch.manual_seed(0)
    sizes = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = WhisperConfig(d_model=16, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=60, **sizes)
    config.pad_token_id = config.bos_token_id = config.eos_token_id = config.decoder_start_token_id = 1
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor().save_pretrained(folder)
    return folder


def test_a_shorter_context_takes_shorter_features(whisper_dir, tmp_path):
    shorten_context(whisper_dir, tmp_path / "short", seconds=4)
    short = WhisperForConditionalGeneration.from_pretrained(tmp_path / "short").eval()
    whole = WhisperForConditionalGeneration.from_pretrained(whisper_dir).eval()
    assert short.config.max_source_positions == 200
    positions = [model.model.encoder.embed_positions.weight for model in (short, whole)]
    assert torch.equal(positions[0], positions[1][:200])
    feature_extractor = WhisperFeatureExtractor.from_pretrained(tmp_path / "short")
    waveform = np.random.default_rng(0).normal(size=16_000).astype(np.float32)
    features = feature_extractor(waveform, sampling_rate=16_000, return_tensors="pt").input_features
    assert features.shape == (1, 80, 400)
    assert short.model.encoder(features).last_hidden_state.shape == (1, 200, 16)


def test_a_folder_that_is_there_is_left_as_it_is(whisper_dir, tmp_path, capsys):
    (tmp_path / "short").mkdir()
    shorten_context(whisper_dir, tmp_path / "short")
    assert "reusing" in capsys.readouterr().out
    assert not list((tmp_path / "short").iterdir())


@pytest.mark.parametrize("seconds", [0, 31])
def test_a_context_that_whisper_does_not_have_is_refused(seconds, whisper_dir, tmp_path):
    with pytest.raises(ValueError, match=rf"from 1 to 30, the context of .*, got {seconds}"):
        shorten_context(whisper_dir, tmp_path / "short", seconds)
    assert not (tmp_path / "short").exists()
