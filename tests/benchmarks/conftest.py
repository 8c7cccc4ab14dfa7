"""Tiny stand-ins for published models, on disk in the formats of the real ones."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

from tests.training.conftest import (  # noqa: F401 - fixtures
    VOCAB_SIZE,
    clips,
    examples,
    make_tokenizer,
    one_thread,
    write_wav,
)


BEATS_CHECKPOINT = Path(__file__).parents[1] / "fixtures" / "beats" / "iter3plus.pt"


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory, make_tokenizer: Any) -> dict[str, str]:  # noqa: F811
    """A Whisper folder, an original BEATs checkpoint and an LLM's folder."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    whisper = WhisperConfig(d_model=16, **heads, **layers, encoder_ffn_dim=16, decoder_ffn_dim=16, vocab_size=32)
    whisper.pad_token_id = whisper.bos_token_id = whisper.eos_token_id = whisper.decoder_start_token_id = 0
    whisper.max_source_positions = 150
    WhisperForConditionalGeneration(whisper).save_pretrained(folder / "whisper")
    WhisperFeatureExtractor(chunk_length=3).save_pretrained(folder / "whisper")
    shutil.copy(BEATS_CHECKPOINT, folder / "beats.pt")
    llama = LlamaConfig(vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=32, num_hidden_layers=2)
    llama.num_attention_heads = llama.num_key_value_heads = 2
    llama.bos_token_id, llama.eos_token_id, llama.pad_token_id = 3, 2, 0
    LlamaForCausalLM(llama).save_pretrained(folder / "llm")
    make_tokenizer().save_pretrained(folder / "llm")
    return {name: str(folder / path) for name, path in (("speech", "whisper"), ("sound", "beats.pt"), ("llm", "llm"))}
