from collections.abc import Callable
from typing import Any

import pytest

from peft_listen import AudioListenConfig
from tests.small_models import LLM_CONFIGS, QFORMER, VOCAB_SIZE, make_beats_config, make_whisper_config


@pytest.fixture(scope="session")
def plain_config() -> Callable[..., AudioListenConfig]:
    def make(sound: bool = False, llm: str = "llama", **kwargs: Any) -> AudioListenConfig:
        return AudioListenConfig(
            speech_config=make_whisper_config(),
            sound_config=make_beats_config() if sound else None,
            qformer_config=dict(QFORMER),
            text_config=LLM_CONFIGS[llm](),
            audio_token_id=VOCAB_SIZE - 1,
            **kwargs,
        )

    return make
