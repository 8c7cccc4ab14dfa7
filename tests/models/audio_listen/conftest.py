from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GemmaConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from peft_listen import (
    AudioListenConfig,
    AudioListenForCausalLM,
    AudioListenProcessor,
    BeatsConfig,
    BeatsModel,
)


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


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_llm() -> Callable[..., PreTrainedModel]:
    def make(name: str, seed: int = 0) -> PreTrainedModel:
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(LLM_CONFIGS[name]()).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    # Larger than the usual initialisation, so that every token visibly matters.
                    parameter.normal_(std=0.2)
                elif model.get_output_embeddings().bias is parameter:
                    parameter.normal_()
        return model

    return make


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[], PreTrainedTokenizerFast]:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    text = "USER: What is said in this recording? ASSISTANT: the quick brown fox jumps over the lazy dog again"
    backend.train_from_iterator([text] * 4, trainer)
    serialized = backend.to_str()

    def make(**kwargs: Any) -> PreTrainedTokenizerFast:
        tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **kwargs}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(serialized), **tokens)

    return make


@pytest.fixture(scope="session")
def whisper_config() -> Callable[..., WhisperConfig]:
    def make(**kwargs: Any) -> WhisperConfig:
        sizes = {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 16}
        decoder = {"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 16}
        ids = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "decoder_start_token_id": 0}
        more = {"vocab_size": 32, "begin_suppress_tokens": None}
        return WhisperConfig(**{"d_model": 16, **sizes, **decoder, **ids, **more, **kwargs})

    return make


@pytest.fixture(scope="session")
def beats_config() -> Callable[[], BeatsConfig]:
    def make() -> BeatsConfig:
        return BeatsConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            patch_embedding_size=8,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )

    return make


@pytest.fixture(scope="session")
def make_processor(make_tokenizer: Callable[..., Any]) -> Callable[..., AudioListenProcessor]:
    def make(sound: bool = False, **kwargs: Any) -> AudioListenProcessor:
        return AudioListenProcessor.from_sub_models_pretrained(
            speech=WhisperFeatureExtractor(), llm=make_tokenizer(), sound=sound, **kwargs
        )

    return make


@pytest.fixture(scope="session")
def make_model(
    make_llm: Callable[..., Any],
    make_tokenizer: Callable[..., Any],
    whisper_config: Callable[..., Any],
    beats_config: Callable[..., Any],
) -> Callable[..., AudioListenForCausalLM]:
    def make(llm: str = "llama", sound: bool = False, **kwargs: Any) -> AudioListenForCausalLM:
        language_model = make_llm(llm)
        torch.manual_seed(1)
        model = AudioListenForCausalLM.from_sub_models_pretrained(
            speech=WhisperForConditionalGeneration(whisper_config()),
            sound=BeatsModel(beats_config()) if sound else None,
            llm=language_model,
            tokenizer=make_tokenizer(),
            **{"qformer_config": QFORMER, **kwargs},
        )
        with torch.no_grad():
            # Weights large enough that what is heard visibly matters, so that no test passes by accident.
            for part in (model.model.speech_tower, model.model.sound_tower, model.model.multi_modal_projector):
                for parameter in part.parameters() if part is not None else ():
                    if parameter.ndim > 1:
                        parameter.normal_(std=0.3)
        return model

    return make


@pytest.fixture(scope="session")
def plain_config(whisper_config: Callable[..., Any], beats_config: Callable[..., Any]) -> Callable[..., Any]:
    def make(sound: bool = False, llm: str = "llama", **kwargs: Any) -> AudioListenConfig:
        return AudioListenConfig(
            speech_config=whisper_config(),
            sound_config=beats_config() if sound else None,
            qformer_config=dict(QFORMER),
            text_config=LLM_CONFIGS[llm](),
            audio_token_id=VOCAB_SIZE - 1,
            **kwargs,
        )

    return make


@pytest.fixture(scope="session")
def clip() -> Callable[..., np.ndarray]:
    def make(seconds: float, seed: int = 0) -> np.ndarray:
        """A tone that wanders, under noise."""
        generator = np.random.default_rng(seed)
        time = np.arange(max(1, round(seconds * SAMPLING_RATE))) / SAMPLING_RATE
        tone = np.sin(2 * np.pi * (200 + 300 * generator.random()) * time * (1 + 0.1 * time))
        return (0.3 * tone + 0.05 * generator.normal(size=len(time))).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def published_parts(
    tmp_path_factory: pytest.TempPathFactory,
    make_llm: Callable[..., Any],
    make_tokenizer: Callable[..., Any],
    whisper_config: Callable[..., Any],
    beats_config: Callable[..., Any],
) -> dict[str, Path]:
    """Folders of a Whisper, a BEATs and a Llama checkpoint, as they would be published."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(2)
    WhisperForConditionalGeneration(whisper_config()).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor().save_pretrained(folder / "whisper")
    BeatsModel(beats_config()).save_pretrained(folder / "beats")
    make_llm("llama").save_pretrained(folder / "llama")
    make_tokenizer().save_pretrained(folder / "llama")
    return {"speech": folder / "whisper", "sound": folder / "beats", "llm": folder / "llama"}
