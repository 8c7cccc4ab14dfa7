"""Tiny models with random weights, one for each tested architecture, and the equivalent call by hand."""

import copy

import pytest
import torch
import transformers
from peft import get_peft_model

from peft_listen import ListenConfig
from tests.call_by_hand import ByHand
from tests.device import place


VOCABULARY = 61
IMAGE_TOKEN = 60
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large, to make the effect of prompts visible and greedy tokens different
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
    "tie_word_embeddings": False,  # a tied head repeats the last token
}
GROUPED = {**SIZES, "num_key_value_heads": 2, "intermediate_size": 48}
OPT = {**SIZES, "ffn_dim": 48, "init_std": 0.2, "word_embed_proj_dim": 32, "dropout": 0.0}
GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": 128,
    "vocab_size": VOCABULARY,
    "initializer_range": 0.2,
}
GPT2_DROPOUTS = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 1, "eos_token_id": None}
MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
WINDOW = 5  # shorter than prompts and text together


def _qwen2_vl():
    text = transformers.Qwen2Config(**GROUPED).to_dict() | {"rope_parameters": MROPE}
    text.pop("model_type")
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 2}
    return transformers.Qwen2VLConfig(
        text_config=text,
        vision_config={**vision, "spatial_merge_size": 1, "temporal_patch_size": 1, "in_channels": 3},
        image_token_id=IMAGE_TOKEN,
        video_token_id=59,
        vision_start_token_id=58,
        vision_end_token_id=57,
    )


def _qwen3_vl():
    text = transformers.Qwen3Config(**GROUPED, head_dim=8).to_dict() | {"rope_parameters": MROPE}
    text.pop("model_type")
    vision = {"depth": 2, "hidden_size": 16, "out_hidden_size": 32, "num_heads": 2, "intermediate_size": 16}
    return transformers.Qwen3VLConfig(
        text_config=text,
        vision_config={**vision, "patch_size": 2, "spatial_merge_size": 2, "temporal_patch_size": 1}
        | {"in_channels": 3, "num_position_embeddings": 16, "deepstack_visual_indexes": [0]},
        image_token_id=IMAGE_TOKEN,
        video_token_id=59,
        vision_start_token_id=58,
        vision_end_token_id=57,
    )


def _llava():
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    return transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**GROUPED),
        vision_config=transformers.CLIPVisionConfig(**vision, image_size=4, patch_size=2, projection_dim=16),
        image_token_index=IMAGE_TOKEN,
    )


CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**GROUPED),
    "qwen2": lambda: transformers.Qwen2Config(**GROUPED),
    "qwen3": lambda: transformers.Qwen3Config(**GROUPED, head_dim=8),
    "mistral": lambda: transformers.MistralConfig(**GROUPED, sliding_window=WINDOW),
    "gemma2": lambda: transformers.Gemma2Config(**GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8
    ),
    "gpt2": lambda: transformers.GPT2Config(**GPT2, **GPT2_DROPOUTS),
    "opt": lambda: transformers.OPTConfig(**OPT),
    "opt-projected": lambda: transformers.OPTConfig(**OPT | {"word_embed_proj_dim": 16}),
    "opt-post-norm": lambda: transformers.OPTConfig(**OPT, do_layer_norm_before=False),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(**SIZES, intermediate_size=48),
    "mixtral": lambda: transformers.MixtralConfig(**GROUPED, num_local_experts=4, num_experts_per_tok=2),
    "bloom": lambda: transformers.BloomConfig(**SIZES),
    "phi": lambda: transformers.PhiConfig(**SIZES, intermediate_size=48),
    "falcon": lambda: transformers.FalconConfig(**SIZES, new_decoder_architecture=True, num_kv_heads=2),
    "qwen2-vl": _qwen2_vl,
    "qwen3-vl": _qwen3_vl,
    "llava": _llava,
}
COMPOSITES = {"qwen2-vl", "qwen3-vl", "llava"}


@pytest.fixture(params=CONFIGS)
def architecture(request):
    return request.param


@pytest.fixture
def build():
    """Makes the base model of an architecture, with the same weights each time."""

    def build(architecture="llama", attn_implementation=None, **changes):
        torch.manual_seed(0)
        config = CONFIGS[architecture]()
        for name, value in changes.items():
            setattr(config, name, value)
        kind = transformers.AutoModelForImageTextToText if architecture in COMPOSITES else None
        kind = kind or transformers.AutoModelForCausalLM
        return place(kind.from_config(config, attn_implementation=attn_implementation).eval())

    return build


@pytest.fixture
def attach():
    """Attaches a pool with a visible effect to a copy of a base model."""

    def attach(base, adapter_name="default", **changes):
        plain = {"center_queries": False, "query_pooling": "mean", "shared_prompt_mode": "prepend"}
        if "max_train_prompt_length" not in changes:
            plain["stochastic_prompt_length"], plain["max_train_prompt_length"] = True, changes.get("pool_size", 12)
        settings = {"pool_size": 12, "prompt_length": 4, "init_weights": False, **plain, **changes}
        return get_peft_model(copy.deepcopy(base), ListenConfig(**settings), adapter_name=adapter_name).eval()

    return attach


@pytest.fixture
def by_hand():
    return ByHand


@pytest.fixture
def tokens():
    """Random ordinary tokens, `(rows, length)`."""

    def tokens(rows=2, length=6, seed=1):
        return torch.randint(3, 56, (rows, length), generator=torch.Generator().manual_seed(seed))

    return tokens


@pytest.fixture(scope="session")
def draw():
    """Random queries `(rows, size)` and keys `(pool_size, size)`."""

    def draw(seed, rows=3, pool_size=20, size=16):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rows, size, generator=generator), torch.randn(pool_size, size, generator=generator)

    return draw


@pytest.fixture
def padded():
    """Pads rows of different lengths: input ids and attention mask."""

    def padded(rows, side):
        length = max(len(row) for row in rows)
        input_ids = torch.zeros(len(rows), length, dtype=torch.long)
        attention_mask = torch.zeros_like(input_ids)
        for i, row in enumerate(rows):
            where = slice(length - len(row), None) if side == "left" else slice(len(row))
            input_ids[i, where], attention_mask[i, where] = row, 1
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    return padded
