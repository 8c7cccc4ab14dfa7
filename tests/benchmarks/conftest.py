"""Small models on disk, in the formats of the published ones."""

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, WhisperFeatureExtractor, WhisperForConditionalGeneration

from tests.small_models import CHAT_IDS, CHAT_VOCAB_SIZE, SIZES, make_chat_tokenizer, make_whisper_config


BEATS_CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "beats" / "iter3plus.pt"


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A Whisper folder, an original BEATs checkpoint and an LLM's folder."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    WhisperForConditionalGeneration(make_whisper_config(max_source_positions=150)).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(chunk_length=3).save_pretrained(folder / "whisper")
    shutil.copy(BEATS_CHECKPOINT, folder / "beats.pt")
    LlamaForCausalLM(LlamaConfig(vocab_size=CHAT_VOCAB_SIZE, **SIZES, **CHAT_IDS)).save_pretrained(folder / "llm")
    make_chat_tokenizer().save_pretrained(folder / "llm")
    return {name: str(folder / path) for name, path in (("speech", "whisper"), ("sound", "beats.pt"), ("llm", "llm"))}
