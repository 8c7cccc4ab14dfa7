"""Changes to the prompts that are tried from outside of the library."""

import pytest
import torch
from peft import get_peft_model
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.mini_listen.trials import START_TEXT, KeysBeforeTraining, mix_values, start_from_text
from peft_listen import ListenConfig
from peft_listen.training import ListenCallback
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


def test_deep_values_are_mixed_like_the_others(model):
    llm = model.unload()
    config = {"selector": "grouped", "selector_kwargs": {"num_groups": 4}, "key_loss_weight": 0.0, "value_layers": [1]}
    deep = get_peft_model(llm, ListenConfig(pool_size=12, prompt_length=4, init_weights=False, **config))
    pool = find_listen_layer(deep).pool_of().eval()
    embeds = torch.randn(3, 5, SIZES["hidden_size"])
    selected = pool(embeds)
    mix_values(deep, 1e-5)
    mixed = pool(embeds)
    assert torch.allclose(mixed.prompts, selected.prompts, atol=1e-5)
    assert torch.allclose(mixed.deep.vectors, selected.deep.vectors, atol=1e-5)


def test_keys_begin_as_queries_of_training_rows(model, tmp_path):
    rows = [
        {"input_ids": torch.tensor([3 + number % 50, 7, 9]), "labels": torch.tensor([-100, -100, 9])}
        for number in range(64)
    ]
    args = TrainingArguments(
        str(tmp_path), max_steps=1, per_device_train_batch_size=8, report_to=[], use_cpu=True, seed=0
    )
    pool = find_listen_layer(model).pool_of()
    before = pool.keys.detach().clone()
    found = {}

    class Observer(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            found.update(keys=pool.keys.detach().clone(), mean=pool.query_mean.clone())

    callbacks = [KeysBeforeTraining(num_rows=32, batch_size=8), ListenCallback(), Observer()]
    trainer = Trainer(model, args, train_dataset=rows, data_collator=default_data_collator, callbacks=callbacks)
    with model.record_selections() as records:
        trainer.train()
    assert not torch.equal(found["keys"], before)
    # The first step counts as the fifth, after four batches of rows: it moves the mean, and does not replace it.
    assert len(records) == 5
    expected = found["mean"] + 0.2 * (records[-1].query.mean(dim=0) - found["mean"])
    assert torch.allclose(pool.query_mean, expected, atol=1e-6)


def test_all_keys_and_values_are_trained_by_the_loss_of_the_prompts(model):
    pool = find_listen_layer(model).pool_of()
    with torch.no_grad():
        pool.values.normal_()
    mix_values(model, 0.1)
    pool.train()(torch.randn(3, 5, SIZES["hidden_size"])).prompts.square().sum().backward()
    for parameter in (pool.keys, pool.values):
        assert parameter.grad.abs().sum(dim=-1).gt(0).all()
