"""Models of real sizes with random weights, because only their sizes matter for time and memory."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, WhisperConfig, WhisperFeatureExtractor

from peft_listen import AudioListenConfig, AudioListenForCausalLM, AudioListenProcessor, BeatsConfig


LANGUAGE_MODELS: dict[str, dict[str, int]] = {
    # Llama 3 8B
    "8b": {
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
    # SmolLM2-135M
    "135m": {
        "hidden_size": 576,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "intermediate_size": 1536,
        "vocab_size": 49152,
    },
    "small": {
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 96,
        "vocab_size": 128,
    },
}

# Width, layers and attention heads of Whisper's encoder: large-v2, tiny.en, and one for tests.
_SPEECH_ENCODERS = {"8b": (1280, 32, 20), "135m": (384, 4, 6), "small": (64, 1, 2)}
# Settings of the sound encoder, for models with one: BEATs iter3+, and one for tests.
_SOUND_ENCODERS: dict[str, dict[str, int]] = {
    "8b": {},
    "small": {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64},
}
_QFORMERS = {"8b": 768, "135m": 256, "small": 64}
DESCRIPTIONS = {
    "8b": "encoders of the sizes of Whisper large-v2 and BEATs, language model of the size of Llama-3-8B",
    "135m": "encoder of the size of Whisper tiny.en, language model of the size of SmolLM2-135M",
    "small": "a model for tests",
}


def make_processor(size: str, **settings: Any) -> AudioListenProcessor:
    """
    A processor for the audio model of a size. Its tokenizer knows single words only.

    Args:
        size (`str`): `"8b"`, `"135m"` or `"small"`.
        settings: arguments of [`~peft_listen.AudioListenProcessor`].
    """
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<pad>": 1, "what": 2}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>")
    return AudioListenProcessor.from_sub_models_pretrained(
        speech=WhisperFeatureExtractor(), llm=tokenizer, sound=size in _SOUND_ENCODERS, **settings
    )


def make_audio_model(
    size: str, processor: AudioListenProcessor, device: torch.device | str, dtype: str, **settings: Any
) -> AudioListenForCausalLM:
    """
    An audio model with random weights, in evaluation mode. It generates as many tokens as requested.

    Args:
        size (`str`): `"8b"`, `"135m"` or `"small"`.
        processor ([`~peft_listen.AudioListenProcessor`]): from [`make_processor`].
        device (`torch.device` or `str`)
        dtype (`str`): of encoders and language model; the projector is in float32.
        settings: fields of [`~peft_listen.AudioListenConfig`].
    """
    width, layers, heads = _SPEECH_ENCODERS[size]
    qformer_width = _QFORMERS[size]
    config = AudioListenConfig(
        speech_config=WhisperConfig(
            d_model=width, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=4 * width
        ),
        sound_config=BeatsConfig(**_SOUND_ENCODERS[size]) if size in _SOUND_ENCODERS else None,
        qformer_config={
            "hidden_size": qformer_width,
            "intermediate_size": 4 * qformer_width,
            "num_attention_heads": qformer_width // 64,
        },
        text_config=LlamaConfig(**LANGUAGE_MODELS[size], max_position_embeddings=16384),
        audio_token_id=processor.audio_token_id,
        speech_chunk_multiple=processor.speech_chunk_multiple,
        **settings,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = AudioListenForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()
    generate_to_the_end(model)
    return model


def generate_to_the_end(model: Any) -> None:
    """Without an end token, `generate` makes the requested number of tokens for each row."""
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
