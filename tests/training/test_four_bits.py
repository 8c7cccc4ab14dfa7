"""A language model in 4 bits, prepared by PEFT: the pool is trained in float32, and saved without it."""

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from peft_listen import ListenConfig
from peft_listen.training import parameter_groups
from tests import small_models


bitsandbytes = pytest.importorskip("bitsandbytes", reason="it quantizes, `pip install bitsandbytes`")
pytestmark = pytest.mark.cpu_only("it quantizes on the CPU; tests/gpu has a model in 4 bits")

# Wide enough for the kernels of bitsandbytes for all processors.
SIZES = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4}
CONFIG = ListenConfig(pool_size=8, prompt_length=2, center_queries=True, task_type="CAUSAL_LM")


@pytest.fixture(scope="module")
def llm_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llm")
    torch.manual_seed(0)
    ids = small_models.CHAT_IDS
    config = LlamaConfig(vocab_size=small_models.CHAT_VOCAB_SIZE, num_key_value_heads=4, **SIZES, **ids)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    small_models.make_chat_tokenizer().save_pretrained(folder)
    return folder


def quantization():
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)


def frozen(model):
    return {name: each.clone() for name, each in model.named_parameters() if not each.requires_grad}


def train(model, batch, steps=4):
    optimizer = torch.optim.AdamW(parameter_groups(model, 1e-2))
    losses = []
    for _ in range(steps):
        loss = model.train()(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "gradient checkpointing"])
def test_the_pool_of_a_text_model_is_trained(checkpointing, llm_folder, tmp_path):
    llm = AutoModelForCausalLM.from_pretrained(llm_folder, quantization_config=quantization())
    llm = prepare_model_for_kbit_training(llm, use_gradient_checkpointing=checkpointing)
    model = get_peft_model(llm, CONFIG)
    pool = model.base_model.layer.pool_of()
    assert isinstance(llm.model.layers[0].mlp.up_proj, bitsandbytes.nn.Linear4bit)
    assert {parameter.dtype for parameter in pool.parameters()} == {torch.float32}
    # The embeddings, from which the pool is initialized, are not quantized.
    whole = get_peft_model(AutoModelForCausalLM.from_pretrained(llm_folder), CONFIG)
    torch.testing.assert_close(pool.keys, whole.base_model.layer.pool_of().keys)

    row = torch.arange(5, 17)[None]
    before = frozen(model)
    losses = train(model, {"input_ids": row, "labels": row.masked_fill(torch.arange(12) < 6, -100)})
    assert losses[-1] < losses[0] - 0.1
    for name, parameter in frozen(model).items():
        assert torch.equal(parameter, before[name]), name

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(llm_folder), tmp_path)
    assert torch.equal(loaded.base_model.layer.pool_of().values, pool.values)
