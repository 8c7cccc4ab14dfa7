"""Training on the device in bfloat16 gives the losses of the CPU in float32, within the precision of bfloat16."""

import pytest
import torch
from transformers import Trainer, TrainingArguments

from peft_listen.training import AudioListenCollator, FeatureCache, ListenCallback, sft_config
from tests import simulated_device
from tests.device import on_device
from tests.small_models import make_adapted_chat_model, make_chat_processor


pytestmark = pytest.mark.gpu

STEPS = 4
SETTINGS = {"max_steps": STEPS, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
SETTINGS |= {"report_to": [], "disable_tqdm": True, "learning_rate": 1e-2, "seed": 3}


@pytest.fixture(scope="module")
def processor():
    return make_chat_processor()


@pytest.fixture
def modes(device):
    """Settings on the CPU in float32, and on the device in bfloat16 with gradient checkpointing."""

    def modes():
        yield {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
        has_bf16 = device.type != simulated_device.NAME  # as far as `TrainingArguments` knows
        with on_device(device):
            yield {"use_cpu": device.type == "cpu", "bf16": has_bf16, "gradient_checkpointing": True}

    return modes()


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("has_cache", [False, True])
def test_trainer(has_cache, modes, processor, examples, clips, tmp_path, device):
    found = []
    for mode in modes:
        model = make_adapted_chat_model()
        cache = None
        if has_cache:
            base = model.get_base_model().to("cpu" if mode["use_cpu"] else device)
            cache = FeatureCache(tmp_path / str(mode["use_cpu"]), base)
            cache.build(base, processor, clips)
        trainer = Trainer(
            model,
            TrainingArguments(str(tmp_path), remove_unused_columns=False, **SETTINGS, **mode),
            train_dataset=examples,
            data_collator=AudioListenCollator(processor, feature_cache=cache),
            callbacks=[ListenCallback()],
        )
        trainer.train()
        found.append(losses(trainer))
        pool = model.base_model.layer.pool_of()
        assert pool.step == STEPS and pool.keys.dtype == torch.float32
        assert pool.keys.device.type == ("cpu" if mode["use_cpu"] else device.type)
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_sft_trainer(modes, processor, examples, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    found = []
    for mode in modes:
        trainer = trl.SFTTrainer(
            make_adapted_chat_model(),
            sft_config(tmp_path, **SETTINGS, **mode),
            train_dataset=datasets.Dataset.from_list(examples),
            data_collator=AudioListenCollator(processor, supervised_logits_only=False),
            processing_class=processor,
            callbacks=[ListenCallback()],
        )
        trainer.train()
        found.append(losses(trainer))
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_gradient_scaling_skips_does_not_count(fused, make_pair, tokens, device):
    _, model = make_pair(center_queries=True)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=fused)
    scaler = torch.amp.GradScaler(device.type, init_scale=1.0)
    pool = model.base_model.layer.pool_of()
    counts, means = [], []
    for number in range(4):
        input_ids = tokens(2, seed=number)
        labels = input_ids.masked_fill(torch.arange(7, device=device) < 3, -100)
        dtype = torch.float16 if device.type == "cuda" else torch.bfloat16
        with torch.autocast(device.type, dtype=dtype):
            loss = model(input_ids=input_ids, labels=labels).loss
        scaler.scale(loss).backward()
        if number == 1:
            pool.values.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        counts.append(pool.step)
        means.append(pool.query_mean.clone())
    assert counts == [1, 1, 2, 3]
    assert torch.equal(means[1], means[0]) and not torch.equal(means[2], means[1])
    assert int(pool.saved_step) == 3 and pool.saved_step.device == device
