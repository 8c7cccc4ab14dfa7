"""
Fixtures of the training tests. Their tokenizer has a chat template and their model has a sound encoder by default, so
`make_tokenizer`, `make_processor`, `make_model` and `make_adapted` replace the shared fixtures of the same names.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from peft_listen import AudioListenForCausalLM, AudioListenProcessor, BeatsModel, ListenConfig
from tests.small_models import (
    CHAT_IDS,
    CHAT_VOCAB_SIZE,
    QFORMER,
    SIZES,
    make_beats_config,
    make_chat_tokenizer,
    make_whisper_config,
)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return make_chat_tokenizer


@pytest.fixture(scope="session")
def make_processor() -> Callable[..., AudioListenProcessor]:
    def make(sound: bool = True, tokenizer: Any = None, **kwargs: Any) -> AudioListenProcessor:
        tokenizer = make_chat_tokenizer() if tokenizer is None else tokenizer
        speech = WhisperFeatureExtractor()
        return AudioListenProcessor.from_sub_models_pretrained(speech=speech, llm=tokenizer, sound=sound, **kwargs)

    return make


@pytest.fixture(scope="session")
def processor(make_processor: Callable[..., AudioListenProcessor]) -> AudioListenProcessor:
    return make_processor()


@pytest.fixture(scope="session")
def make_model() -> Callable[..., AudioListenForCausalLM]:
    def make(sound: bool = True, speech_seed: int = 1, dropout: float = 0.0, **kwargs: Any) -> AudioListenForCausalLM:
        torch.manual_seed(0)
        speech = WhisperForConditionalGeneration(make_whisper_config())
        beats = BeatsModel(make_beats_config())
        llm = LlamaForCausalLM(LlamaConfig(vocab_size=CHAT_VOCAB_SIZE, **SIZES, **CHAT_IDS))
        torch.manual_seed(0)
        model = AudioListenForCausalLM.from_sub_models_pretrained(
            speech=speech,
            sound=beats if sound else None,
            llm=llm,
            tokenizer=make_chat_tokenizer(),
            qformer_config={**QFORMER, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout},
            **kwargs,
        )
        with torch.no_grad():
            # Large enough weights that the audio changes the output visibly, so no test passes by accident.
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
