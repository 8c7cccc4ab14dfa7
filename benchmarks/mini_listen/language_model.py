"""The frozen language model alone, without audio: what it can do and what its states tell."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from offline import small_models
from offline.build_base import CHATML_TEMPLATE


def load_language_model(models_dir: Path, device: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """
    Loads the language model of the benchmark, in float32 and evaluation mode.

    Args:
        models_dir (`Path`): folder of the small models; missing ones are converted.
        device (`str`): `"cpu"` or `"cuda"`.

    Returns:
        `tuple[PreTrainedModel, PreTrainedTokenizerBase]`
    """
    folder = small_models.obtain(models_dir.resolve())["llm"]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    return model, AutoTokenizer.from_pretrained(folder)


def prompt_text(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    """A conversation in the benchmark's chat template, up to the beginning of the answer."""
    text = tokenizer.apply_chat_template(
        messages, chat_template=CHATML_TEMPLATE, add_generation_prompt=True, tokenize=False
    )
    assert isinstance(text, str)
    return text
