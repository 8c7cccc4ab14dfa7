"""Tiny models under the names that PEFT's tests load from the Hub, and a text to train on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import datasets
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers


QUOTES = [
    "the only way to do great work is to love what you do",
    "in the middle of difficulty lies opportunity",
    "what we know is a drop what we do not know is an ocean",
    "be the change that you wish to see in the world",
    "a room without books is like a body without a soul",
    "so many books so little time",
    "you only live once but if you do it right once is enough",
    "if you tell the truth you do not have to remember anything",
]
VOCABULARY = 128
SIZES = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.2}
LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
GROUPED = {**SIZES, **LAYERS, "num_key_value_heads": 2, "intermediate_size": 24}
GPT = {**SIZES, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 128}

CONFIGS: dict[str, Callable[[], transformers.PretrainedConfig]] = {
    "peft-internal-testing/tiny-random-OPTForCausalLM": lambda: transformers.OPTConfig(
        **SIZES, **LAYERS, ffn_dim=24, word_embed_proj_dim=16, init_std=0.2
    ),
    "peft-internal-testing/tiny-random-GPT2LMHeadModel": lambda: transformers.GPT2Config(**GPT),
    "peft-internal-testing/tiny-random-GPTJForCausalLM": lambda: transformers.GPTJConfig(**GPT, rotary_dim=4),
    "trl-internal-testing/tiny-random-LlamaForCausalLM": lambda: transformers.LlamaConfig(**GROUPED),
    "peft-internal-testing/tiny-dummy-qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "hf-internal-testing/tiny-random-Gemma3ForCausalLM": lambda: transformers.Gemma3TextConfig(
        **GROUPED, head_dim=4, sliding_window=4, query_pre_attn_scalar=4
    ),
    "hf-internal-testing/tiny-random-gpt2": lambda: transformers.GPT2Config(**GPT),
    "hf-internal-testing/tiny-random-MistralForCausalLM": lambda: transformers.MistralConfig(
        **GROUPED, sliding_window=4
    ),
}


def save_models(folder: Path) -> None:
    """Saves every model with a tokenizer, each in a folder by its name: a process that works in `folder` loads these
    by the names and reaches for no Hub."""
    tokenizer = train_tokenizer()
    for name, make_config in CONFIGS.items():
        torch.manual_seed(0)
        transformers.AutoModelForCausalLM.from_config(make_config()).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)


def train_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-pair tokenizer trained on the text."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    tokenizer.train_from_iterator(
        QUOTES, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False)
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def quotes() -> datasets.DatasetDict:
    """The text in the shape of the data set that PEFT's tests train on."""
    return datasets.DatasetDict(train=datasets.Dataset.from_dict({"quote": QUOTES}))
