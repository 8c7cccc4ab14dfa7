"""Changes to the prompts that are tried from outside of the library."""

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.mini_listen.trials import START_TEXT, mix_values, start_from_text
from peft_listen import ListenConfig
from peft_listen.tuners.listen import find_listen_layer
from tests.small_models import IDS, SIZES


class Tokenizer:
    """A token for each word of a text."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [5 + number % 50 for number, _ in enumerate(text.split())]}


@pytest.fixture
def model():
    torch.manual_seed(0)
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=61, **SIZES, **IDS))
    options = {"selector": "grouped", "selector_kwargs": {"num_groups": 4}, "key_loss_weight": 0.0}
    return get_peft_model(llm, ListenConfig(pool_size=12, prompt_length=4, **options))


@pytest.mark.parametrize("num_shared_prompts", [0, 4])
def test_the_prompts_of_all_inputs_are_the_embeddings_of_the_text(num_shared_prompts):
    llm = LlamaForCausalLM(LlamaConfig(vocab_size=61, **SIZES, **IDS))
    options = {"shared_prompt_mode": "add" if num_shared_prompts else "prepend"}
    model = get_peft_model(
        llm, ListenConfig(pool_size=4, prompt_length=4, num_shared_prompts=num_shared_prompts, **options)
    )
    start_from_text(model, Tokenizer())
    pool = find_listen_layer(model).pool_of()
    prompts = pool.shared_values if num_shared_prompts else pool.values
    assert torch.equal(prompts, llm.get_input_embeddings().weight[5:9])
    assert prompts.requires_grad


def test_a_text_with_too_few_tokens_is_refused(model):
    pool = find_listen_layer(model).pool_of()
    words = len(START_TEXT.split())
    pool.shared_values = torch.nn.Parameter(torch.zeros(words + 1, SIZES["hidden_size"]))
    with pytest.raises(ValueError, match=f"has {words} tokens for {words + 1} prompts"):
        start_from_text(model, Tokenizer())


def test_at_a_low_temperature_the_mean_is_the_best_value(model):
    pool = find_listen_layer(model).pool_of()
    with torch.no_grad():
        pool.values.normal_()
    embeds = torch.randn(3, 5, SIZES["hidden_size"])
    selected = pool.eval()(embeds).prompts
    mix_values(model, 1e-5)
    assert torch.allclose(pool(embeds).prompts, selected, atol=1e-5)


def test_all_keys_and_values_are_trained_by_the_loss_of_the_prompts(model):
    pool = find_listen_layer(model).pool_of()
    with torch.no_grad():
        pool.values.normal_()
    mix_values(model, 0.1)
    pool.train()(torch.randn(3, 5, SIZES["hidden_size"])).prompts.square().sum().backward()
    for parameter in (pool.keys, pool.values):
        assert parameter.grad.abs().sum(dim=-1).gt(0).all()
