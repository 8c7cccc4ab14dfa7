"""Small audio language models of transformers with random weights, as folders with their processors."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken
from transformers import (
    AudioFlamingo3Config,
    AudioFlamingo3ForConditionalGeneration,
    AudioFlamingo3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    VoxtralProcessor,
    WhisperFeatureExtractor,
)

from tests import small_models


QWEN2_AUDIO, AUDIO_FLAMINGO, VOXTRAL = "Qwen2-Audio", "Audio Flamingo 3", "Voxtral"

# The form of the published one: text and audio parts, or strings; text before audio would be an error.
AUDIO_FLAMINGO_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'audio' %}<sound>"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ENCODER = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "num_mel_bins": 16,
}


def save(name: str, folder: Path) -> Path:
    """Saves a small model and its processor."""
    model, processor = _MAKERS[name](folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Large enough that every token and the audio change the output visibly.
                parameter.normal_(std=0.2)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _tokenizer(*more_tokens: str) -> PreTrainedTokenizerFast:
    tokenizer = small_models.make_chat_tokenizer(chat_template=None)
    tokenizer.add_tokens([AddedToken(token, special=True) for token in more_tokens], special_tokens=True)
    return tokenizer


def _text_config(vocab_size: int) -> dict:
    return {"vocab_size": vocab_size, **small_models.SIZES, **small_models.CHAT_IDS}


def _feature_extractor() -> WhisperFeatureExtractor:
    return WhisperFeatureExtractor(feature_size=ENCODER["num_mel_bins"])


def _make_qwen2_audio(folder: Path) -> tuple[PreTrainedModel, Qwen2AudioProcessor]:
    tokenizer = _tokenizer("<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
    encoder = {"d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    torch.manual_seed(0)
    config = Qwen2AudioConfig(
        audio_config={**encoder, "num_mel_bins": ENCODER["num_mel_bins"]},
        text_config={"model_type": "qwen2", **_text_config(len(tokenizer))},
        audio_token_index=tokenizer.convert_tokens_to_ids("<|AUDIO|>"),
    )
    return Qwen2AudioForConditionalGeneration(config), Qwen2AudioProcessor(_feature_extractor(), tokenizer)


def _make_audio_flamingo(folder: Path) -> tuple[PreTrainedModel, AudioFlamingo3Processor]:
    tokenizer = _tokenizer("<sound>")
    torch.manual_seed(0)
    config = AudioFlamingo3Config(
        audio_config={"model_type": "audioflamingo3_encoder", **ENCODER},
        text_config={"model_type": "qwen2", **_text_config(len(tokenizer))},
        audio_token_id=tokenizer.convert_tokens_to_ids("<sound>"),
    )
    processor = AudioFlamingo3Processor(_feature_extractor(), tokenizer, chat_template=AUDIO_FLAMINGO_TEMPLATE)
    return AudioFlamingo3ForConditionalGeneration(config), processor


# The tokens of mistral-common's encoding; the audio token has the id that the processor expects.
MISTRAL_TOKENS = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]"]
MISTRAL_TOKENS += ["[TOOL_RESULTS]", "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]"]
MISTRAL_TOKENS += ["[PREFIX]", "[MIDDLE]", "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]
MISTRAL_TOKENS += [f"<SPECIAL_{number}>" for number in range(20, 24)]
MISTRAL_TOKENS += ["[AUDIO]", "[BEGIN_AUDIO]", "[TRANSCRIBE]"]


def _make_voxtral(folder: Path) -> tuple[PreTrainedModel, VoxtralProcessor]:
    from transformers.tokenization_mistral_common import MistralCommonBackend

    num_special = len(MISTRAL_TOKENS)
    content = {
        "config": {
            "pattern": r"[^\s]+|\s+",
            "num_vocab_tokens": 256,
            "default_vocab_size": 256 + num_special,
            "default_num_special_tokens": num_special,
            "version": "v7",
        },
        "vocab": [
            {"rank": byte, "token_bytes": base64.b64encode(bytes([byte])).decode(), "token_str": None}
            for byte in range(256)
        ],
        "special_tokens": [
            {"rank": rank, "token_str": token, "is_control": True} for rank, token in enumerate(MISTRAL_TOKENS)
        ],
        "audio": {
            "sampling_rate": 16_000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": ENCODER["num_mel_bins"], "hop_length": 160, "window_size": 400},
            "chunk_length_s": 30.0,
        },
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tekken.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    tokenizer = MistralCommonBackend(tokenizer_path=path)
    torch.manual_seed(0)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11}
    config = VoxtralConfig(
        # The projector takes four frames of the encoder at once.
        audio_config={"model_type": "voxtral_encoder", **ENCODER, "intermediate_size": 64},
        text_config={"model_type": "llama", "vocab_size": 256 + num_special, **small_models.SIZES, **ids},
        audio_token_id=MISTRAL_TOKENS.index("[AUDIO]"),
    )
    return VoxtralForConditionalGeneration(config), VoxtralProcessor(_feature_extractor(), tokenizer)


_MAKERS: dict[str, Callable] = {
    QWEN2_AUDIO: _make_qwen2_audio,
    AUDIO_FLAMINGO: _make_audio_flamingo,
    VOXTRAL: _make_voxtral,
}
NAMES = list(_MAKERS)
