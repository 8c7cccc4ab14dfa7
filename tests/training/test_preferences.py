"""TRL's trainers of preferences: the reference is the trained adapter before training, and the keys are trained."""

import math
import warnings

import pytest
import torch
from peft import PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from peft_listen import ListenConfig
from peft_listen.training import ListenCallback
from peft_listen.tuners.listen.prompt_length import train_prompt_length
from tests.device import place


trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
pytestmark = pytest.mark.skipif(
    not hasattr(pytest.importorskip("trl.trainer.utils"), "add_fused_lm_head"),
    reason="trainers of this version of TRL do not pass the labels to the model",
)

SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
WEIGHT = 0.1  # of the key loss, by default
FORMS = {
    "similarity": {"selector": "similarity"},
    "attention": {"selector": "attention"},
    "grouped": {"selector": "grouped", "prompt_length": 4, "stochastic_prompt_length": False},
    "standardized": {"selector": "similarity", "center_queries": True, "standardize_queries": True},
    "deep": {"selector": "similarity", "value_layers": [0, 1]},
    "text": {"selector": "similarity", "query_layer": 1, "query_text": "last", "query_pooling": "modality_mean"},
}


def make_model(**settings):
    torch.manual_seed(0)
    base = place(LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS, pad_token_id=0, bos_token_id=None, eos_token_id=1)))
    settings = {"pool_size": 12, "prompt_length": 3, "selector": "similarity", "center_queries": True} | settings
    if settings.get("stochastic_prompt_length") is not False:
        settings.setdefault("max_train_prompt_length", 6)
    return get_peft_model(base, ListenConfig(**settings, task_type="CAUSAL_LM"))


def train_a_little(model):
    """A few steps, which move the parameters and the running statistics away from their initial values."""
    model.train()
    optimizer = torch.optim.SGD([parameter for parameter in model.parameters() if parameter.requires_grad], lr=0.5)
    for step in range(3):
        row = torch.randint(3, 56, (2, 7), generator=torch.Generator().manual_seed(step))
        model(input_ids=row, labels=row.masked_fill(torch.arange(7) < 4, -100)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def tokenizer():
    vocabulary = {str(number): number for number in range(61)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="2"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1", unk_token="2")


def rows(number=8):
    def text(seed, length):
        numbers = torch.randint(3, 56, (length,), generator=torch.Generator().manual_seed(seed))
        return " ".join(map(str, numbers.tolist()))

    return [
        {
            "prompt": text(index, 3 + index % 3),
            "chosen": " " + text(100 + index, 4),
            "rejected": " " + text(200 + index, 2 + index % 4),
        }
        for index in range(number)
    ]


SETTINGS = {"report_to": [], "save_strategy": "no", "use_cpu": True, "bf16": False, "logging_steps": 1}
SETTINGS |= {"disable_tqdm": True, "optim": "sgd", "learning_rate": 0.5, "lr_scheduler_type": "constant"}
SETTINGS |= {"gradient_checkpointing": False}


def reward(completions, **kwargs):
    return [float(len(completion)) for completion in completions]


def make_trainer(kind, model, folder, callbacks=(), **changes):
    settings = SETTINGS | {"max_steps": 2, "output_dir": str(folder)}
    dataset = datasets.Dataset.from_list(rows())
    shared = {"train_dataset": dataset, "processing_class": tokenizer(), "callbacks": list(callbacks)}
    if kind == "DPO":
        settings |= {"per_device_train_batch_size": 2}
        return trl.DPOTrainer(model, args=trl.DPOConfig(**settings | changes), **shared)
    if kind == "KTO":
        unpaired = [{"prompt": row["prompt"], "completion": row["chosen"], "label": True} for row in rows(4)]
        unpaired += [{"prompt": row["prompt"], "completion": row["rejected"], "label": False} for row in rows(4)]
        shared["train_dataset"] = datasets.Dataset.from_list(unpaired)
        settings |= {"per_device_train_batch_size": 4}
        return trl.KTOTrainer(model, args=trl.KTOConfig(**settings | changes), **shared)
    settings |= {"per_device_train_batch_size": 4, "num_generations": 2, "max_completion_length": 5, "beta": 0.1}
    shared["train_dataset"] = dataset.select_columns(["prompt"])
    return trl.GRPOTrainer(model, reward_funcs=reward, args=trl.GRPOConfig(**settings | changes), **shared)


def logged(trainer, name):
    return [values[name] for values in trainer.state.log_history if name in values]


@pytest.mark.parametrize("form", FORMS)
def test_the_first_loss_of_direct_preference_optimization_is_that_of_equal_models(form, tmp_path):
    model = train_a_little(make_model(**FORMS[form]))
    trainer = make_trainer("DPO", model, tmp_path, [ListenCallback()])
    with model.record_selections() as records:
        trainer.train()
    losses = logged(trainer, "loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert logged(trainer, "rewards/margins")[0] == pytest.approx(0, abs=1e-6)
    assert losses[1] != pytest.approx(math.log(2), abs=1e-5)
    # In each step, the reference has as many prompts as the trained adapter, and the same ones before the first update.
    lengths = [record.indices.shape[1] for record in records]
    assert lengths[0::2] == lengths[1::2]
    assert torch.equal(records[0].indices, records[1].indices)
    config = model.peft_config["default"]
    if config.stochastic_prompt_length:
        assert lengths[0::2] == [train_prompt_length(config, step) for step in (0, 1)]


def test_the_reference_does_not_change(tmp_path):
    model = train_a_little(make_model())
    layer = model.base_model.layer
    before = {name: tensor.clone() for name, tensor in layer.pool_of("default").state_dict().items()}
    make_trainer("DPO", model, tmp_path, [ListenCallback()]).train()
    reference = layer.pool_of("ref").state_dict()
    for name, tensor in before.items():
        assert name == "saved_step" or torch.equal(reference[name], tensor), name  # a training run starts at step 0
    assert not torch.equal(layer.pool_of("default").query_mean, before["query_mean"])
    assert not any(parameter.requires_grad for parameter in layer.pool_of("ref").parameters())


def test_a_reference_of_precomputed_probabilities_is_the_trained_adapter(tmp_path):
    model = train_a_little(make_model(stochastic_prompt_length=False))
    trainer = make_trainer("DPO", model, tmp_path, [ListenCallback()], precompute_ref_log_probs=True)
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)


def test_resumed_direct_preference_optimization_is_that_of_an_uninterrupted_run(tmp_path):
    class Interruption(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 2

    def run(folder, callbacks=(), resume=None):
        model = train_a_little(make_model())
        saving = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}
        trainer = make_trainer("DPO", model, folder, [ListenCallback(), *callbacks], **saving)
        trainer.train(resume_from_checkpoint=resume)
        return logged(trainer, "loss")

    losses = run(tmp_path / "whole")
    run(tmp_path / "cut", [Interruption()])
    assert run(tmp_path / "cut", resume=str(tmp_path / "cut/checkpoint-2")) == pytest.approx(losses, abs=1e-6)


def test_the_divergence_from_the_reference_starts_at_zero(tmp_path):
    model = train_a_little(make_model(stochastic_prompt_length=False))
    trainer = make_trainer("GRPO", model, tmp_path, [ListenCallback()], max_steps=3)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning, message=".*(prompts|keys).*")
        trainer.train()
    divergences = logged(trainer, "kl")
    assert divergences[0] == pytest.approx(0, abs=1e-6)
    assert max(divergences[1:]) > 1e-5


def test_unpaired_preferences_start_at_the_reference(tmp_path):
    model = train_a_little(make_model())
    trainer = make_trainer("KTO", model, tmp_path, [ListenCallback()])
    trainer.train()
    assert logged(trainer, "kl")[0] == pytest.approx(0, abs=1e-5)
    assert logged(trainer, "loss")[0] == pytest.approx(0.5, abs=1e-6)  # 1 - sigmoid(0)


class Gradients(TrainerCallback):
    """The gradient of the keys at each optimizer step, after the other callbacks, and the queries and indices of the step."""

    def __init__(self, layer):
        self.layer, self.gradients = layer, []

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        gradient = self.layer.pool_of("default").keys.grad
        self.gradients.append(None if gradient is None else gradient.clone())


def gradient_by_hand(pool, records):
    """Of the mean over all rows of the distance between a query and its selected keys."""
    keys = pool.keys.detach().clone().requires_grad_()
    distances = [(record.query - pool.query_mean)[:, None] - keys[record.indices] for record in records]
    loss = torch.cat([distance.norm(dim=-1).mean(dim=-1) for distance in distances]).mean()
    (gradient,) = torch.autograd.grad(WEIGHT * loss, keys)
    return gradient


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("kind", ["DPO", "GRPO"])
def test_the_keys_are_trained_by_the_key_loss(kind, accumulation, tmp_path):
    model = train_a_little(make_model(stochastic_prompt_length=False, key_loss_weight=WEIGHT))
    layer = model.base_model.layer
    pool, gradients, records = layer.pool_of(), Gradients(layer), []

    def record(selection):
        if pool.is_training_step and layer.active_pool is pool:
            records.append(selection)

    changes = {"gradient_accumulation_steps": accumulation, "max_steps": 1}
    trainer = make_trainer(kind, model, tmp_path, [ListenCallback(), gradients], **changes)
    # A step of its own for the running mean, which the step updates at its end.
    reference = {name: tensor.clone() for name, tensor in pool.state_dict().items()}
    with layer.recording(record):
        trainer.train()
    assert len(records) == accumulation
    after = pool.keys.detach().clone()
    pool.load_state_dict(reference)
    expected = gradient_by_hand(pool, records)
    (gradient,) = gradients.gradients
    assert expected.abs().max() > 1e-4
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(after, reference["keys"] - 0.5 * expected, atol=1e-6, rtol=1e-5)


def test_without_the_callback_a_warning_says_that_the_keys_are_not_trained(tmp_path):
    model = train_a_little(make_model())
    before = model.base_model.layer.pool_of().keys.detach().clone()
    trainer = make_trainer("DPO", model, tmp_path)
    with pytest.warns(UserWarning, match=r"does not read `outputs.loss`, so the keys are not trained.*ListenCallback"):
        trainer.train()
    assert torch.equal(model.base_model.layer.pool_of("default").keys, before)


@pytest.mark.parametrize("settings", [{"selector": "attention"}, {"key_loss_weight": 0.0}], ids=str)
def test_keys_that_need_no_key_loss_give_no_warning(settings, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = make_model(**settings)
    trainer = make_trainer("DPO", model, tmp_path)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*keys are not trained.*")
        trainer.train()


def test_prompts_of_random_number_do_not_fit_a_trainer_that_generates(tmp_path):
    model = make_model()
    trainer = make_trainer("GRPO", model, tmp_path, [ListenCallback()], max_steps=1)
    with pytest.warns(UserWarning, match=r"generates with 3 prompts.*with 1 to 6.*stochastic_prompt_length = False"):
        trainer.train()


def test_only_a_copy_gets_the_statistics_of_another_adapter(tmp_path):
    model = train_a_little(make_model(stochastic_prompt_length=False))
    layer, config = model.base_model.layer, model.peft_config["default"]
    model.add_adapter("other", config)
    model.add_adapter("copy", config)
    for name, parameter in layer.pool_of("default").named_parameters():
        layer.pool_of("copy").get_parameter(name).data.copy_(parameter.data)
    model.save_pretrained(tmp_path)
    model.load_adapter(tmp_path, "loaded")
    initial = layer.pool_of("other").query_mean.clone()
    layer.pool_of("loaded").query_mean.zero_()
    row = torch.arange(3, 9)[None]
    for name in ("other", "copy", "loaded"):
        model.set_adapter(name)
        model.eval()(input_ids=row)
    trained = layer.pool_of("default")
    assert not torch.equal(trained.query_mean, initial)
    assert torch.equal(layer.pool_of("other").query_mean, initial)
    assert torch.equal(layer.pool_of("copy").query_mean, trained.query_mean)
    assert layer.pool_of("copy").step == trained.step == 3
    assert not layer.pool_of("loaded").query_mean.any()  # its own


def test_passes_without_gradients_have_the_prompts_of_the_step_and_generation_those_of_inference():
    model = make_model(max_train_prompt_length=6)
    config = model.peft_config["default"]
    row = torch.arange(3, 9)[None]
    labels = row.masked_fill(torch.arange(6) < 3, -100)
    step = next(step for step in range(99) if train_prompt_length(config, step) != config.prompt_length)
    model.train().begin_step(step)
    with model.record_selections() as records:
        model(input_ids=row, labels=labels)
        with torch.no_grad():
            model(input_ids=row, labels=labels)
            model(input_ids=row)  # scores no answer
        model.generate(input_ids=row, max_new_tokens=2, do_sample=False)
        model.eval()(input_ids=row, labels=labels)
    drawn = train_prompt_length(config, step)
    assert [record.indices.shape[1] for record in records] == [drawn, drawn, 3, 3, 3]


def test_an_adapter_that_was_loaded_for_training_is_its_own_reference(tmp_path):
    model = train_a_little(make_model())
    model.save_pretrained(tmp_path / "adapter")
    base = model.unload()
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    trainer = make_trainer("DPO", loaded, tmp_path, [ListenCallback()])
    trainer.train()
    assert logged(trainer, "loss")[0] == pytest.approx(math.log(2), abs=1e-6)
