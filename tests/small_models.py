"""Builders of the small models with random weights, tokenizers and clips that the tests share."""

from __future__ import annotations

import functools
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

import peft_listen
from tests.device import place


SAMPLING_RATE = 16_000

VOCAB_SIZE = 300
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
IDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
LLM_CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaConfig(vocab_size=VOCAB_SIZE, **SIZES, **IDS),
    "llama_tied": lambda: LlamaConfig(vocab_size=VOCAB_SIZE, tie_word_embeddings=True, **SIZES, **IDS),
    "qwen2": lambda: Qwen2Config(vocab_size=VOCAB_SIZE, **SIZES, **IDS),
    "mistral": lambda: MistralConfig(vocab_size=VOCAB_SIZE, sliding_window=8, **SIZES, **IDS),
    "gemma": lambda: GemmaConfig(vocab_size=VOCAB_SIZE, head_dim=16, **SIZES, **IDS),
    "gemma2": lambda: Gemma2Config(vocab_size=VOCAB_SIZE, head_dim=16, final_logit_softcapping=0.05, **SIZES, **IDS),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB_SIZE, n_embd=32, n_layer=2, n_head=2, n_positions=256, **IDS),
    "cohere": lambda: CohereConfig(vocab_size=VOCAB_SIZE, logit_scale=0.3, **SIZES, **IDS),
    "granite": lambda: GraniteConfig(
        vocab_size=VOCAB_SIZE, logits_scaling=3.0, embedding_multiplier=2.0, **SIZES, **IDS
    ),
    "phi": lambda: PhiConfig(vocab_size=VOCAB_SIZE, **SIZES, **IDS),
}
QFORMER = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}

# Changes of a LiSTEN configuration: the kinds of selections and queries.
LISTEN_VARIANTS: dict[str, dict[str, Any]] = {
    "default": {"center_queries": True, "query_pooling": "modality_mean"},
    "standardized": {"center_queries": True, "standardize_queries": True},
    "shared prompts": {"num_shared_prompts": 2, "query_ignored_token_ids": [1, 2]},
    "added shared prompts": {"shared_prompt_mode": "add"},
    "attention": {"selector": "attention"},
    "grouped": {"selector": "grouped"},
    "hybrid": {"selector": "hybrid"},
    "residual": {"selector": "residual"},
    "deep values": {"shared_prompt_mode": "add", "value_layers": [0, 1]},
}

# For the tokenizer with a chat template and for models that fit it.
CHAT_VOCAB_SIZE = 320
CHAT_IDS = {"bos_token_id": 3, "eos_token_id": 2, "pad_token_id": 0}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def make_llm(name: str, seed: int = 0) -> PreTrainedModel:
    """A language model of `LLM_CONFIGS`."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(LLM_CONFIGS[name]()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                # Larger than the default initialization, so that every token changes the output visibly.
                parameter.normal_(std=0.2)
            elif model.get_output_embeddings().bias is parameter:
                parameter.normal_()
    return place(model)


def make_whisper_config(**kwargs: Any) -> WhisperConfig:
    sizes = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
    decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
    ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
    more = {"vocab_size": 32, "begin_suppress_tokens": None}
    return WhisperConfig(**{"d_model": 16, **sizes, **decoder, **ids, **more, **kwargs})


def make_beats_config() -> peft_listen.BeatsConfig:
    return peft_listen.BeatsConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        patch_embedding_size=8,
        num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2,
    )


def make_tokenizer(**kwargs: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer without a chat template, which fits the models of `LLM_CONFIGS`."""
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **kwargs}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_plain_vocabulary()), **tokens)


def make_chat_tokenizer(adds_bos: bool = False, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer with a chat template; with `adds_bos`, the tokenizer adds the BOS token."""
    backend = Tokenizer.from_str(_chat_vocabulary())
    if adds_bos:
        special_tokens = [("<s>", backend.token_to_id("<s>"))]
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=special_tokens)
    tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=chat_template, **tokens)


def make_processor(sound: bool = False, **kwargs: Any) -> peft_listen.AudioListenProcessor:
    """A processor whose tokenizer has no chat template."""
    return peft_listen.AudioListenProcessor.from_sub_models_pretrained(
        speech=WhisperFeatureExtractor(), llm=make_tokenizer(), sound=sound, **kwargs
    )


def make_model(llm: str = "llama", sound: bool = False, **kwargs: Any) -> peft_listen.AudioListenForCausalLM:
    """An audio model around a language model of `LLM_CONFIGS`."""
    language_model = make_llm(llm)
    torch.manual_seed(1)
    model = peft_listen.AudioListenForCausalLM.from_sub_models_pretrained(
        speech=WhisperForConditionalGeneration(make_whisper_config()),
        sound=peft_listen.BeatsModel(make_beats_config()) if sound else None,
        llm=language_model,
        tokenizer=make_tokenizer(),
        **{"qformer_config": QFORMER, **kwargs},
    )
    with torch.no_grad():
        # Large enough weights that the audio changes the output visibly, so that no test passes by accident.
        for part in (model.model.speech_tower, model.model.sound_tower, model.model.multi_modal_projector):
            for parameter in part.parameters() if part is not None else ():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.3)
    return place(model)


def make_chat_processor(sound: bool = True, tokenizer: Any = None, **kwargs: Any) -> peft_listen.AudioListenProcessor:
    """A processor whose tokenizer has a chat template."""
    tokenizer = make_chat_tokenizer() if tokenizer is None else tokenizer
    speech = WhisperFeatureExtractor()
    return peft_listen.AudioListenProcessor.from_sub_models_pretrained(
        speech=speech, llm=tokenizer, sound=sound, **kwargs
    )


def save_chat_base(folder: Path) -> str:
    """Saves an audio model without a sound encoder, and its processor, whose tokenizer has a chat template."""
    make_chat_model(sound=False).save_pretrained(folder)
    make_chat_processor(sound=False).save_pretrained(folder)
    return str(folder)


def make_chat_model(
    sound: bool = True, speech_seed: int = 1, dropout: float = 0.0, **kwargs: Any
) -> peft_listen.AudioListenForCausalLM:
    """An audio model for `make_chat_processor`."""
    torch.manual_seed(0)
    speech = WhisperForConditionalGeneration(make_whisper_config())
    beats = peft_listen.BeatsModel(make_beats_config())
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=CHAT_VOCAB_SIZE, **SIZES, **CHAT_IDS))
    torch.manual_seed(0)
    model = peft_listen.AudioListenForCausalLM.from_sub_models_pretrained(
        speech=speech,
        sound=beats if sound else None,
        llm=llm,
        tokenizer=make_chat_tokenizer(),
        qformer_config={**QFORMER, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
        **kwargs,
    )
    with torch.no_grad():
        # Large enough weights that the audio changes the output visibly, so that no test passes by accident.
        base = model.model
        parts = (base.speech_tower, base.sound_tower, base.language_model, model.lm_head)
        for part, seed in zip(parts, (speech_seed, 2, 3, 4), strict=True):
            torch.manual_seed(seed)
            for parameter in part.parameters() if part is not None else ():
                if parameter.ndim > 1:
                    parameter.normal_(std=0.2)
    return place(model)


def make_adapted_chat_model(dropout: float = 0.0, **changes: Any) -> PeftModel:
    """The model of `make_chat_model` with a LiSTEN adapter and a trained projector."""
    model = make_chat_model(dropout=dropout)
    settings = {"pool_size": 12, "prompt_length": 3, "max_train_prompt_length": 6, "init_weights": "normal"}
    settings["shared_prompt_mode"] = "prepend"
    torch.manual_seed(4)
    config = peft_listen.ListenConfig(**{**settings, "modules_to_save": ["multi_modal_projector"], **changes})
    return get_peft_model(model, config)


def save_published_parts(folder: Path) -> dict[str, Path]:
    """Saves a Whisper, a BEATs and a Llama checkpoint as they are published, and returns their folders."""
    torch.manual_seed(2)
    WhisperForConditionalGeneration(make_whisper_config()).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    peft_listen.BeatsModel(make_beats_config()).save_pretrained(folder / "beats")
    make_llm("llama").save_pretrained(folder / "llama")
    make_tokenizer().save_pretrained(folder / "llama")
    return {"speech": folder / "whisper", "sound": folder / "beats", "llm": folder / "llama"}


def make_clip(seconds: float, seed: int = 0) -> np.ndarray:
    """A rising tone with noise, float32 of shape `(num_samples,)` at 16 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(max(1, round(seconds * SAMPLING_RATE))) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * (200 + 300 * generator.random()) * time * (1 + 0.1 * time))
    return (0.3 * tone + 0.05 * generator.normal(size=len(time))).astype(np.float32)


def write_wav(path: Path, seconds: float = 0.5, seed: int = 0) -> Path:
    """Writes a steady tone with noise as a mono 16-bit WAV file at 16 kHz."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * (200 + 400 * generator.random()) * time)
    samples = np.int16(8000 * tone + 800 * generator.normal(size=len(time)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(SAMPLING_RATE)
        file.writeframes(samples.tobytes())
    return path


@functools.cache
def _plain_vocabulary() -> str:
    text = "USER: What is said in this recording? ASSISTANT: the quick brown fox jumps over the lazy dog again"
    return _byte_level_vocabulary(text, VOCAB_SIZE, ["<s>", "</s>", "<pad>"])


@functools.cache
def _chat_vocabulary() -> str:
    text = "user assistant What is said? Which animal is it? the quick brown fox jumps over the lazy dog"
    # Two ids are left for tokens that are added later, such as the audio token.
    return _byte_level_vocabulary(text, CHAT_VOCAB_SIZE - 2, ["<pad>", "<|im_start|>", "<|im_end|>", "<s>"])


def _byte_level_vocabulary(text: str, vocab_size: int, special_tokens: list[str]) -> str:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special_tokens,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([text] * 4, trainer)
    return backend.to_str()
