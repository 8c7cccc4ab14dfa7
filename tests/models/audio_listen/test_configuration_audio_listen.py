import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoConfig, BertConfig, Blip2QFormerConfig, LlamaConfig, WhisperConfig

from peft_listen import AudioListenConfig, BeatsConfig, WindowQFormerProjector


def test_defaults_are_whisper_and_llama_with_salmonns_windows_and_no_sound_encoder() -> None:
    config = AudioListenConfig()
    assert isinstance(config.speech_config, WhisperConfig)
    assert config.sound_config is None
    assert isinstance(config.text_config, LlamaConfig)
    assert (config.num_queries, config.window_length, config.window_stride) == (1, 17, 17)
    assert isinstance(config.qformer_config, Blip2QFormerConfig)
    assert config.qformer_config.num_hidden_layers == 2
    assert config.qformer_config.cross_attention_frequency == 1
    assert not config.qformer_config.use_qformer_text_input
    assert config.qformer_config.encoder_hidden_size == config.speech_config.d_model


def test_the_qformer_has_the_width_of_both_encoders_as_input() -> None:
    config = AudioListenConfig(
        speech_config={"d_model": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
        sound_config={"hidden_size": 24, "num_attention_heads": 2, "num_conv_pos_embedding_groups": 2},
        qformer_config={"hidden_size": 32, "num_attention_heads": 2},
    )
    assert config.qformer_config.encoder_hidden_size == 72
    assert config.qformer_config.cross_attention_frequency == 1
    assert isinstance(config.sound_config, BeatsConfig)


@pytest.mark.parametrize(
    ("qformer", "settings", "expected"),
    [
        (None, {}, (768**-0.5, 0.0, 0.0)),
        ({"hidden_size": 64, "num_attention_heads": 2}, {}, (1 / 8, 0.0, 0.0)),
        ({"hidden_dropout_prob": 0.2}, {"initializer_range": 0.1}, (0.1, 0.2, 0.0)),
        (Blip2QFormerConfig(hidden_size=64, num_attention_heads=2), {}, (1 / 8, 0.1, 0.1)),
    ],
    ids=["default", "narrow", "given", "a configuration"],
)
def test_a_new_projector_has_no_dropout_and_weights_that_fit_its_width(qformer, settings, expected, tmp_path) -> None:
    config = AudioListenConfig(qformer_config=qformer, **settings)
    config.save_pretrained(tmp_path)
    for either in (config, AutoConfig.from_pretrained(tmp_path)):
        inner = either.qformer_config
        found = (either.initializer_range, inner.hidden_dropout_prob, inner.attention_probs_dropout_prob)
        assert found == pytest.approx(expected)
        assert inner.initializer_range == either.initializer_range


def test_a_composite_that_was_saved_with_other_defaults_keeps_them(tmp_path) -> None:
    AudioListenConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    saved["initializer_range"] = 0.02
    saved["qformer_config"] |= {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    (tmp_path / "config.json").write_text(json.dumps(saved))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.initializer_range == 0.02
    assert config.qformer_config.hidden_dropout_prob == config.qformer_config.attention_probs_dropout_prob == 0.1


@pytest.mark.parametrize("sound", [False, True])
def test_saved_configurations_are_loaded_unchanged(plain_config, sound: bool, tmp_path) -> None:
    config = plain_config(sound=sound, window_length=20, window_stride=10, num_queries=2, encoder_batch_size=3)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(loaded, AudioListenConfig)
    assert {**loaded.to_dict(), "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["sound_config"] is None) == (not sound)
    assert (loaded.sound_config is None) == (not sound)


@pytest.mark.parametrize("tied", [False, True])
def test_tied_embeddings_follow_the_language_model(tied: bool) -> None:
    assert AudioListenConfig(text_config=LlamaConfig(tie_word_embeddings=tied)).tie_word_embeddings is tied


def test_the_text_configuration_is_that_of_the_language_model(plain_config) -> None:
    config = plain_config()
    assert config.get_text_config() is config.text_config


@pytest.mark.parametrize("name", ["num_queries", "window_length", "window_stride", "encoder_batch_size"])
def test_counts_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be at least 1, got 0"):
        AudioListenConfig(**{name: 0})


def test_a_window_longer_than_30_seconds_is_refused() -> None:
    with pytest.raises(ValueError, match="`window_length` is 1501 frames, but the speech encoder gives 1500 frames"):
        AudioListenConfig(window_length=1501)


def test_other_encoders_are_refused() -> None:
    with pytest.raises(ValueError, match="`speech_config` is a BertConfig, but only a WhisperConfig"):
        AudioListenConfig(speech_config=BertConfig())
    with pytest.raises(ValueError, match="`sound_config` is a BertConfig, but only a BeatsConfig"):
        AudioListenConfig(sound_config=BertConfig())


def test_a_qformer_with_text_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`qformer_config.use_qformer_text_input` is True"):
        AudioListenConfig(qformer_config={"use_qformer_text_input": True})


def test_values_of_the_wrong_type_are_refused() -> None:
    with pytest.raises(StrictDataclassFieldValidationError, match="window_length"):
        AudioListenConfig(window_length="17")


def test_a_qformer_of_salmonns_size_has_salmonns_number_of_weights() -> None:
    config = AudioListenConfig(
        speech_config={"d_model": 1280, "encoder_attention_heads": 20, "decoder_attention_heads": 20},
        sound_config=BeatsConfig(),
        text_config=LlamaConfig(hidden_size=4096, num_attention_heads=32),
    )
    with torch.device("meta"):
        projector = WindowQFormerProjector(config)
    assert sum(weight.numel() for weight in projector.qformer.parameters()) == 22_837_248
