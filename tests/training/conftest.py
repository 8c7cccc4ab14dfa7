import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, BeatsConfig, BeatsModel, ListenConfig


SAMPLING_RATE = 16_000
VOCAB_SIZE = 320
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
QUESTIONS = [
    ("What is said?", "the quick brown fox", "asr"),
    ("Which animal is it?", "dog", "sounds"),
    ("How long?", "a second", "asr"),
    ("Is it loud?", "no", "sounds"),
]
SECONDS = (0.9, 0.4, 1.3, 0.7)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def waveform(seconds: float, seed: int) -> np.ndarray:
    """A tone of its own under noise, int16."""
    generator = np.random.default_rng(seed)
    time = np.arange(round(seconds * SAMPLING_RATE)) / SAMPLING_RATE
    tone = np.sin(2 * np.pi * (200 + 400 * generator.random()) * time)
    return np.int16(8000 * tone + 800 * generator.normal(size=len(time)))


@pytest.fixture(scope="session")
def write_wav() -> Callable[..., Path]:
    def write(path: Path, seconds: float = 0.5, seed: int = 0) -> Path:
        with wave.open(str(path), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(SAMPLING_RATE)
            file.writeframes(waveform(seconds, seed).tobytes())
        return path

    return write


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory, write_wav: Callable[..., Path]) -> list[str]:
    folder = tmp_path_factory.mktemp("clips")
    return [str(write_wav(folder / f"clip{index}.wav", seconds, seed=index)) for index, seconds in enumerate(SECONDS)]


@pytest.fixture(scope="session")
def examples(clips: list[str]) -> list[dict[str, Any]]:
    return [
        {"audio": clip, "instruction": instruction, "answer": answer, "task": task}
        for clip, (instruction, answer, task) in zip(clips, QUESTIONS, strict=True)
    ]


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - 2,
        special_tokens=["<pad>", "<|im_start|>", "<|im_end|>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "user assistant What is said? Which animal is it? the quick brown fox jumps over the lazy dog"
    backend.train_from_iterator([text] * 4, trainer)
    serialized = backend.to_str()

    def make(adds_bos: bool = False, chat_template: str | None = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
        tokenizer = Tokenizer.from_str(serialized)
        if adds_bos:
            special_tokens = [("<s>", tokenizer.token_to_id("<s>"))]
            tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=special_tokens)
        tokens = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "<pad>"}
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=chat_template, **tokens)

    return make


@pytest.fixture(scope="session")
def make_processor(make_tokenizer: Callable[..., Any]) -> Callable[..., AudioListenProcessor]:
    def make(sound: bool = True, tokenizer: Any = None, **kwargs: Any) -> AudioListenProcessor:
        tokenizer = make_tokenizer() if tokenizer is None else tokenizer
        speech = WhisperFeatureExtractor()
        return AudioListenProcessor.from_sub_models_pretrained(speech=speech, llm=tokenizer, sound=sound, **kwargs)

    return make


@pytest.fixture(scope="session")
def processor(make_processor: Callable[..., AudioListenProcessor]) -> AudioListenProcessor:
    return make_processor()


@pytest.fixture(scope="session")
def make_model(make_tokenizer: Callable[..., Any]) -> Callable[..., AudioListenForCausalLM]:
    def make(sound: bool = True, speech_seed: int = 1, dropout: float = 0.0, **kwargs: Any) -> AudioListenForCausalLM:
        torch.manual_seed(0)
        speech = WhisperForConditionalGeneration(
            WhisperConfig(
                d_model=16,
                encoder_layers=1,
                encoder_attention_heads=2,
                encoder_ffn_dim=16,
                decoder_layers=1,
                decoder_attention_heads=2,
                decoder_ffn_dim=16,
                vocab_size=32,
                pad_token_id=0,
                bos_token_id=0,
                eos_token_id=0,
                decoder_start_token_id=0,
                begin_suppress_tokens=None,
            )
        )
        beats = BeatsModel(
            BeatsConfig(
                hidden_size=16,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=16,
                patch_embedding_size=8,
                num_conv_pos_embeddings=8,
                num_conv_pos_embedding_groups=2,
            )
        )
        llm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCAB_SIZE,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                num_key_value_heads=2,
                bos_token_id=3,
                eos_token_id=2,
                pad_token_id=0,
            )
        )
        torch.manual_seed(0)
        model = AudioListenForCausalLM.from_sub_models_pretrained(
            speech=speech,
            sound=beats if sound else None,
            llm=llm,
            tokenizer=make_tokenizer(),
            qformer_config={
                "hidden_size": 32,
                "num_attention_heads": 2,
                "intermediate_size": 32,
                "hidden_dropout_prob": dropout,
                "attention_probs_dropout_prob": dropout,
            },
            **kwargs,
        )
        with torch.no_grad():
            # Weights large enough that what is heard visibly matters, so that no test passes by accident.
            base = model.model
            parts = (base.speech_tower, base.sound_tower, base.language_model, model.lm_head)
            for part, seed in zip(parts, (speech_seed, 2, 3, 4), strict=True):
                torch.manual_seed(seed)
                for parameter in part.parameters() if part is not None else ():
                    if parameter.ndim > 1:
                        parameter.normal_(std=0.2)
        return model

    return make


@pytest.fixture(scope="session")
def make_adapted(make_model: Callable[..., AudioListenForCausalLM]) -> Callable[..., PeftModel]:
    def make(dropout: float = 0.0, **changes: Any) -> PeftModel:
        model = make_model(dropout=dropout)
        settings = {"pool_size": 12, "prompt_length": 3, "max_train_prompt_length": 6, "init_weights": "normal"}
        torch.manual_seed(4)
        config = ListenConfig(**{**settings, "modules_to_save": ["multi_modal_projector"], **changes})
        return get_peft_model(model, config)

    return make
