"""`ListenCallback` passes steps to the adapter, initializes keys, logs selections, and warns about collapse."""

import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

from peft_listen import ListenConfig
from peft_listen.training import ListenCallback
from peft_listen.training.callbacks import find_tuner
from peft_listen.tuners.listen.prompt_length import draw_prompt_length


SEED = 5


def rows(spread=True, count=16):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(3, 64, (count, 8), generator=generator)
    if not spread:
        rows[:, :6] = rows[0, :6]  # identical prompts
    return [{"input_ids": row, "labels": torch.cat([torch.full((6,), -100), row[6:]])} for row in rows]


@pytest.fixture
def make_model():
    def make(**changes):
        torch.manual_seed(0)
        sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
        llm = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=2))
        settings = {"pool_size": 10, "prompt_length": 2, "max_train_prompt_length": 5, "seed": SEED}
        return get_peft_model(llm, ListenConfig(**{**settings, **changes}))

    return make


def trainer_of(model, folder, *callbacks, data=None, eval_dataset=None, **changes):
    settings = {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "save_strategy": "no"}
    settings |= {"use_cpu": True, "report_to": [], "disable_tqdm": True, "learning_rate": 0.01}
    args = TrainingArguments(str(folder), **(settings | changes))
    data = data or rows()
    return Trainer(model, args, train_dataset=data, eval_dataset=eval_dataset, callbacks=list(callbacks))


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


class AtStepBegin(TrainerCallback):
    def __init__(self, look):
        self.look = look
        self.seen = []

    def on_step_begin(self, args, state, control, **kwargs):
        self.seen.append(self.look())


def test_prompt_lengths_follow_the_steps_and_are_logged(make_model, tmp_path):
    trainer = trainer_of(make_model(), tmp_path, ListenCallback(), max_steps=6)
    trainer.train()
    assert logged(trainer, "prompt_length") == [draw_prompt_length(SEED, step, 5) for step in range(6)]


def test_micro_batches_of_a_step_have_the_same_prompt_length(make_model, tmp_path):
    model = make_model()
    trainer = trainer_of(model, tmp_path, ListenCallback(), max_steps=3, gradient_accumulation_steps=2)
    with model.record_selections() as records:
        trainer.train()
    lengths = [record.indices.shape[1] for record in records]
    expected = [draw_prompt_length(SEED, step, 5) for step in range(3)]
    assert lengths == [length for length in expected for _ in range(2)]


def test_live_prompts_and_key_loss_cover_the_steps_since_the_last_log(make_model, tmp_path):
    model = make_model()
    trainer = trainer_of(model, tmp_path, ListenCallback(), max_steps=4, logging_steps=2)
    with model.record_selections() as records:
        trainer.train()
    assert len(records) == 4
    selected = [len(torch.cat([record.indices.flatten() for record in records[i : i + 2]]).unique()) for i in (0, 2)]
    assert logged(trainer, "live_prompts") == selected
    assert logged(trainer, "key_loss")[-1] == pytest.approx(float(model.key_loss.detach()), abs=1e-4)


class Reporter(TrainerCallback):
    """Keeps what it is given to log, like the integrations of `report_to`."""

    def __init__(self):
        self.logs = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.logs.append(dict(logs))


@pytest.mark.parametrize("position", [0, -1])
def test_all_callbacks_see_the_logged_values(make_model, tmp_path, position):
    reporter = Reporter()
    trainer = trainer_of(make_model(), tmp_path, reporter, max_steps=2)
    trainer.callback_handler.callbacks.insert(position, ListenCallback())
    trainer.train()
    assert reporter.logs[0].keys() >= {"key_loss", "prompt_length", "live_prompts", "query_cosine"}
    names = ("key_loss", "prompt_length", "live_prompts", "query_cosine")
    for name in names:
        assert [logs[name] for logs in reporter.logs[:2]] == logged(trainer, name)
    assert not reporter.logs[-1].keys() & set(names)  # the summary of the training


def test_a_trainer_without_the_callback_logs_as_before(make_model, tmp_path):
    ListenCallback()
    reporter = Reporter()
    trainer_of(make_model(), tmp_path, reporter, max_steps=1).train()
    assert set(reporter.logs[0]) == {"loss", "grad_norm", "learning_rate", "epoch"}


def test_the_event_files_of_tensorboard_contain_the_values(make_model, tmp_path):
    pytest.importorskip("tensorboard", reason="the integration is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trainer_of(make_model(), tmp_path, ListenCallback(), max_steps=2, report_to=["tensorboard"])
    trainer.train()
    (event_file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(event_file))
    events.Reload()
    assert [event.value for event in events.Scalars("train/prompt_length")] == logged(trainer, "prompt_length")
    assert {"train/key_loss", "train/live_prompts", "train/query_cosine"} <= set(events.Tags()["scalars"])


def test_evaluation_does_not_count_as_a_step(make_model, tmp_path):
    model = make_model()
    evaluation = {"eval_dataset": rows(), "eval_strategy": "steps", "eval_steps": 1}
    trainer = trainer_of(model, tmp_path, ListenCallback(), max_steps=2, **evaluation)
    with model.record_selections() as records:
        trainer.train()
    assert {record.indices.shape[1] for record in records if len(record.query) == 8} == {2}  # the length of evaluation
    assert logged(trainer, "prompt_length") == [draw_prompt_length(SEED, step, 5) for step in range(2)]


def test_keys_are_initialized_from_the_queries_of_earlier_steps(make_model, tmp_path):
    model = make_model()
    layer = model.base_model.layer
    look = AtStepBegin(lambda: layer.listen_pools["default"].keys.detach().clone())
    trainer = trainer_of(model, tmp_path, ListenCallback(init_keys_at_steps=(2,)), look, learning_rate=0.0)
    with model.record_selections() as records:
        trainer.train()
    before, at_one, at_two, at_three = look.seen
    assert torch.equal(before, at_one) and torch.equal(at_two, at_three)
    queries = torch.cat([record.query for record in records[:2]])
    expected = make_model()
    expected.init_keys_from(queries)
    torch.testing.assert_close(at_two, expected.base_model.layer.listen_pools["default"].keys.detach())
    assert not torch.equal(at_one, at_two)


def test_only_the_last_queries_are_stored(make_model, tmp_path):
    model = make_model()
    pool = model.base_model.layer.pool_of()
    look = AtStepBegin(lambda: pool.recent_queries)
    with model.record_selections() as records:
        trainer_of(model, tmp_path, ListenCallback((4,), num_queries=6), look).train()
    last = torch.cat([record.query for record in records[:3]])[-6:]
    torch.testing.assert_close(look.seen[3], last)
    assert pool.recent_queries is None  # no initialization is pending


def test_the_saved_query_mean_includes_every_step(make_model, tmp_path):
    model = make_model()
    with model.record_selections() as records:
        trainer_of(model, tmp_path, ListenCallback(), max_steps=3).train()
    mean = torch.stack([record.query.mean(0) for record in records]).mean(0)  # cumulative in the first steps
    torch.testing.assert_close(model.base_model.layer.listen_pools["default"].query_mean, mean)
    assert model.base_model.layer.listen_pools["default"].step == 3


def test_collapsed_queries_give_one_warning(make_model, tmp_path):
    model = make_model(center_queries=False)
    with pytest.warns(UserWarning, match=r"nearly the same direction \(mean cosine 1\.000\)") as caught:
        trainer_of(model, tmp_path, ListenCallback(), data=rows(spread=False), max_steps=6).train()
    assert sum("nearly the same direction" in str(warning.message) for warning in caught) == 1


def test_distinct_queries_give_no_warning(make_model, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The queries of the last rows")
        trainer = trainer_of(make_model(), tmp_path, ListenCallback(), max_steps=6)
        trainer.train()
    assert max(logged(trainer, "query_cosine")) < 0.5


def test_recording_stops_after_a_failed_run(make_model, tmp_path):
    class Fail(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise RuntimeError("killed")

    model, callback = make_model(), ListenCallback()
    with pytest.raises(RuntimeError, match="killed"):
        trainer_of(model, tmp_path, callback, Fail()).train()
    trainer_of(model, tmp_path, callback).train()
    assert model.base_model.layer.thread.recorders == ()


def test_the_adapter_counts_steps_itself_after_training(make_model, tmp_path):
    model = make_model()
    trainer_of(model, tmp_path, ListenCallback(), max_steps=2).train()
    pool = model.base_model.layer.pool_of()
    step = pool.step
    optimizer = torch.optim.AdamW(pool.parameters(), fused=True)
    embeds = torch.randn(1, 3, pool.keys.shape[1])
    for _ in range(2):
        pool(embeds).prompts.sum().backward()
        optimizer.step()
    assert pool.step == step + 2


def test_the_tuner_is_found_with_other_adapters_and_inside_wrappers(make_model):
    model = make_model()
    assert find_tuner(nn.Sequential(model)) is model.base_model


@pytest.mark.parametrize(
    "make", [lambda llm: llm, lambda llm: get_peft_model(llm, LoraConfig(target_modules=["q_proj"]))]
)
def test_a_model_without_an_adapter_raises(make_model, make, tmp_path):
    model = make(make_model().unload())
    with pytest.raises(ValueError, match=r"no LiSTEN adapter in .*get_peft_model\(model, ListenConfig\(\)\)"):
        trainer_of(model, tmp_path, ListenCallback()).train()


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match=r"steps of at least 1, got \(0, 8\)"):
        ListenCallback(init_keys_at_steps=(0, 8))
    with pytest.raises(ValueError, match="`num_queries` must be at least 1, got 0"):
        ListenCallback(num_queries=0)
