"""`AudioListenForCausalLM` with a LiSTEN adapter in `Trainer`: training, resuming, saving and loading."""

import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainingArguments

from peft_listen.training import AudioListenCollator, FeatureCache, ListenCallback, parameter_groups


STEPS = 6


def train(model, examples, collator, folder, *callbacks, resume=None, **changes):
    settings = {"max_steps": STEPS, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "logging_steps": 1}
    settings |= {"save_strategy": "no", "use_cpu": True, "report_to": [], "disable_tqdm": True, "seed": 3}
    args = TrainingArguments(str(folder), remove_unused_columns=False, **(settings | changes))
    trainer = Trainer(model, args, train_dataset=examples, data_collator=collator, callbacks=list(callbacks))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def logged(trainer, name):
    return [entry[name] for entry in trainer.state.log_history if "loss" in entry]


class KilledError(Exception):
    pass


class KillAt(TrainerCallback):
    """Simulates a process that is killed in the middle of an optimizer step."""

    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KilledError


class FirstGradients(TrainerCallback):
    def __init__(self):
        self.gradients = {}

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if not self.gradients:
            trained = ((name, weight) for name, weight in model.named_parameters() if weight.grad is not None)
            self.gradients = {name: weight.grad.clone() for name, weight in trained}


@pytest.fixture(scope="module")
def cache(make_model, processor, clips, tmp_path_factory):
    model = make_model().eval()
    cache = FeatureCache(tmp_path_factory.mktemp("features"), model)
    cache.build(model, processor, clips)
    return cache


@pytest.fixture
def cached(processor, cache):
    return AudioListenCollator(processor, feature_cache=cache)


def test_the_loss_falls_and_the_frozen_parts_do_not_change(make_adapted, examples, cached, tmp_path):
    model = make_adapted()
    frozen = {name: weight.clone() for name, weight in model.named_parameters() if not weight.requires_grad}
    trainer = train(model, examples, cached, tmp_path, ListenCallback(), max_steps=24, learning_rate=0.05)
    losses = logged(trainer, "loss")
    assert sum(losses[-2:]) < 0.85 * sum(losses[:2])  # two steps see all examples
    weights = dict(model.named_parameters())
    assert all(torch.equal(weights[name], weight) for name, weight in frozen.items())


def test_parameter_groups_train_under_the_trainer(make_adapted, examples, cached, tmp_path):
    model = make_adapted(center_queries=False)
    layer = model.base_model.layer
    before = {name: parameter.detach().clone() for name, parameter in layer.pool_of().named_parameters()}
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-2, value_learning_rate=1.0, key_learning_rate=0.0))
    args = TrainingArguments(
        str(tmp_path), max_steps=2, remove_unused_columns=False, report_to=[], use_cpu=True, save_strategy="no"
    )
    Trainer(
        model,
        args,
        train_dataset=examples,
        data_collator=cached,
        optimizers=(optimizer, None),
        callbacks=[ListenCallback()],
    ).train()
    assert torch.equal(layer.listen_pools["default"].keys, before["keys"])
    assert not torch.equal(layer.listen_pools["default"].values, before["values"])


def test_the_answer_is_not_in_the_query(make_adapted, examples, cached, tmp_path):
    records = []
    for answers in (["yes"] * 4, ["something else entirely"] * 4):
        model = make_adapted()
        changed = [{**example, "answer": answer} for example, answer in zip(examples, answers, strict=True)]
        with model.record_selections() as first:
            train(model, changed, cached, tmp_path, max_steps=1, per_device_train_batch_size=4)
        records.append(first[0])
    torch.testing.assert_close(records[0].query, records[1].query)
    assert torch.equal(records[0].indices, records[1].indices)


def test_cached_and_raw_features_give_the_same_losses(make_adapted, examples, processor, cached, tmp_path):
    raw = train(make_adapted(), examples, AudioListenCollator(processor), tmp_path, ListenCallback(), max_steps=3)
    fast = train(make_adapted(), examples, cached, tmp_path, ListenCallback(), max_steps=3)
    assert logged(fast, "loss") == pytest.approx(logged(raw, "loss"), rel=1e-4)
    assert logged(fast, "prompt_length") == logged(raw, "prompt_length")


def test_workers_of_the_data_loader_give_the_same_losses(make_adapted, examples, cached, tmp_path):
    alone = train(make_adapted(), examples, cached, tmp_path, max_steps=2)
    workers = train(make_adapted(), examples, cached, tmp_path, max_steps=2, dataloader_num_workers=2)
    assert logged(workers, "loss") == pytest.approx(logged(alone, "loss"), rel=1e-5)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_kept_logits_and_accumulation_do_not_change_loss_and_gradients(
    make_adapted, examples, processor, cache, tmp_path, accumulation
):
    """Answers differ in length, so the losses are weighted correctly only by the token count of all micro-batches."""
    results = []
    for only, steps in ((False, 1), (True, accumulation)):
        collator = AudioListenCollator(processor, feature_cache=cache, supervised_logits_only=only)
        first, sizes = FirstGradients(), {"per_device_train_batch_size": 4 // steps}
        trainer = train(
            make_adapted(),
            examples,
            collator,
            tmp_path,
            first,
            max_steps=1,
            gradient_accumulation_steps=steps,
            **sizes,
        )
        results.append((logged(trainer, "loss"), first.gradients))
    (all_losses, all_gradients), (losses, gradients) = results
    assert losses == pytest.approx(all_losses, rel=1e-4)
    assert any(name.endswith(".keys") for name in gradients) and any("multi_modal" in name for name in gradients)
    torch.testing.assert_close(gradients, all_gradients, atol=1e-5, rtol=1e-4)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(make_adapted, examples, cached, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "linear"}

    def callback():
        return ListenCallback(init_keys_at_steps=(1, 5))  # before the checkpoint, and after it

    model = make_adapted(dropout=0.1)
    whole = train(model, examples, cached, tmp_path / "whole", callback(), **changes)
    with pytest.raises(KilledError):
        train(make_adapted(dropout=0.1), examples, cached, tmp_path / "killed", callback(), KillAt(3), **changes)
    again = make_adapted(dropout=0.1)
    checkpoint = tmp_path / "killed" / "checkpoint-2"
    resumed = train(again, examples, cached, tmp_path / "killed", callback(), resume=str(checkpoint), **changes)

    for name in ("loss", "prompt_length", "key_loss", "query_cosine"):
        assert logged(resumed, name) == pytest.approx(logged(whole, name), rel=1e-4), name
    assert len(set(logged(whole, "prompt_length"))) > 1
    weights = {name: weight for name, weight in model.state_dict().items() if "listen_" in name or "modal" in name}
    for name, weight in again.state_dict().items():
        if name in weights:
            torch.testing.assert_close(weight, weights[name], atol=1e-5, rtol=1e-4, msg=name)


def test_a_checkpoint_contains_queries_only_while_an_initialization_is_pending(
    make_adapted, examples, cached, tmp_path
):
    callback = ListenCallback(init_keys_at_steps=(3,))
    train(make_adapted(), examples, cached, tmp_path, callback, max_steps=4, save_strategy="steps", save_steps=2)
    found = [load_file(tmp_path / f"checkpoint-{step}" / "adapter_model.safetensors") for step in (2, 4)]
    (name,) = (name for name in found[0] if name.endswith("recent_queries"))
    assert found[0][name].shape == (4, 32)
    assert name not in found[1]


def test_a_checkpoint_without_queries_gives_a_warning(make_adapted, examples, cached, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2}
    train(make_adapted(), examples, cached, tmp_path, ListenCallback(), max_steps=2, **changes)
    checkpoint = str(tmp_path / "checkpoint-2")
    with pytest.warns(UserWarning, match=r"The checkpoint contains no queries"):
        train(
            make_adapted(), examples, cached, tmp_path, ListenCallback((3,)), max_steps=3, resume=checkpoint, **changes
        )


def test_a_checkpoint_that_was_moved_resumes_from_the_same_queries(make_adapted, examples, cached, tmp_path):
    changes = {"save_strategy": "steps", "save_steps": 2}
    whole = make_adapted()
    train(whole, examples, cached, tmp_path / "run", ListenCallback((3,)), max_steps=4, **changes)
    moved = shutil.copytree(tmp_path / "run" / "checkpoint-2", tmp_path / "elsewhere")
    again = make_adapted()
    train(again, examples, cached, tmp_path / "again", ListenCallback((3,)), max_steps=4, resume=str(moved), **changes)
    keys = [model.base_model.layer.pool_of().keys for model in (whole, again)]
    torch.testing.assert_close(keys[1], keys[0], atol=1e-5, rtol=1e-4)


def test_the_saved_adapter_gives_the_same_logits_and_is_small(make_adapted, make_model, examples, cached, tmp_path):
    model = make_adapted()
    train(model, examples, cached, tmp_path / "run", ListenCallback(), max_steps=2)
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert all("listen_" in name or "multi_modal_projector" in name for name in saved)
    loaded = PeftModel.from_pretrained(make_model(), tmp_path / "adapter").eval()
    batch = cached(examples)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, model(**batch).logits)
        torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss)
