"""TRL's `SFTTrainer` with `sft_config`: the model receives the audio, and settings that would drop it raise an error."""

import sys
import warnings

import pytest
import torch

from peft_listen import ListenConfig
from peft_listen.training import AudioListenCollator, ListenCallback, sft_config


trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")
SETTINGS = {"max_steps": 3, "per_device_train_batch_size": 2, "logging_steps": 1, "save_strategy": "no"}
SETTINGS |= {"use_cpu": True, "bf16": False, "report_to": [], "disable_tqdm": True, "learning_rate": 1e-2}


@pytest.fixture
def collator(processor):
    return AudioListenCollator(processor, supervised_logits_only=False)


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_model_receives_the_audio(make_adapted, processor, collator, examples, tmp_path, gradient_checkpointing):
    model = make_adapted()
    projected = []
    model.get_base_model().model.multi_modal_projector.register_forward_hook(
        lambda module, args, output: projected.append(len(output))
    )
    trainer = trl.SFTTrainer(
        model,
        sft_config(tmp_path, gradient_checkpointing=gradient_checkpointing, **SETTINGS),
        train_dataset=datasets.Dataset.from_list(examples),
        data_collator=collator,
        processing_class=processor,
        callbacks=[ListenCallback()],
    )
    before = {name: weight.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    trainer.train()
    assert len(projected) >= 3 and min(projected) > 0
    after = dict(model.named_parameters())
    for part in ("pools.default.keys", "pools.default.values", "multi_modal_projector.modules_to_save.default"):
        names = [name for name in before if part in name]
        assert names and any(not torch.equal(after[name], before[name]) for name in names), part
    log = trainer.state.log_history[0]
    assert log.keys() >= {"loss", "mean_token_accuracy", "key_loss", "prompt_length"}


def test_the_loss_equals_that_of_the_model(make_adapted, processor, collator, examples, tmp_path):
    model = make_adapted()
    settings = SETTINGS | {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_checkpointing": False}
    expected = make_adapted().train()
    expected.base_model.begin_step(0)
    loss = expected(**collator(examples)).loss
    trainer = trl.SFTTrainer(
        model,
        sft_config(tmp_path, **settings),
        train_dataset=datasets.Dataset.from_list(examples),
        data_collator=collator,
        processing_class=processor,
        callbacks=[ListenCallback()],
    )
    trainer.train()
    # With `num_items_in_batch` the key loss weights rows by their number of tokens, otherwise equally.
    per_row = expected.base_model.layer.thread.key_loss_per_row
    tokens = (collator(examples)["labels"] != -100).sum(-1)
    difference = 0.1 * float(((per_row * tokens).sum() / tokens.sum() - per_row.mean()).detach())
    assert trainer.state.log_history[0]["loss"] == pytest.approx(float(loss.detach()) + difference, abs=2e-3)


def test_the_trainer_can_add_the_adapter(make_model, processor, collator, examples, tmp_path):
    trainer = trl.SFTTrainer(
        make_model(),
        sft_config(tmp_path, **SETTINGS),
        train_dataset=datasets.Dataset.from_list(examples),
        data_collator=collator,
        processing_class=processor,
        peft_config=ListenConfig(pool_size=8, prompt_length=2, modules_to_save=["multi_modal_projector"]),
        callbacks=[ListenCallback()],
    )
    trainer.train()
    assert all(entry["key_loss"] > 0 for entry in trainer.state.log_history if "loss" in entry)


def test_a_collator_with_supervised_logits_only_raises(make_adapted, processor, examples, tmp_path):
    trainer = trl.SFTTrainer(
        make_adapted(),
        sft_config(tmp_path, **SETTINGS),
        train_dataset=datasets.Dataset.from_list(examples),
        data_collator=AudioListenCollator(processor),
        processing_class=processor,
        callbacks=[ListenCallback()],
    )
    with pytest.raises(
        ValueError, match=r"The head of `SFTTrainer` skips unsupervised positions itself.*supervised_logits_only=False"
    ):
        trainer.train()


@pytest.mark.cpu_only("it checks the settings of a machine")
def test_other_settings_are_passed_to_the_configuration(tmp_path):
    config = sft_config(tmp_path, learning_rate=0.5, dataset_kwargs={"add_special_tokens": False}, **{"use_cpu": True})
    assert isinstance(config, trl.SFTConfig)
    assert config.learning_rate == 0.5
    assert config.dataset_kwargs == {"skip_prepare_dataset": True, "add_special_tokens": False}
    assert config.remove_unused_columns is False and config.max_length is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"remove_unused_columns": True}, "`remove_unused_columns=True` removes the `audio` column"),
        ({"dataset_kwargs": {"skip_prepare_dataset": False}}, "tokenizes the examples without their audio"),
        ({"packing": True}, "`packing=True` puts several examples into one row"),
        ({"eval_packing": True}, "`eval_packing=True` puts several examples into one row"),
        ({"padding_free": True}, "`padding_free=True` replaces the collator"),
        ({"assistant_only_loss": True}, "`assistant_only_loss=True` tokenizes"),
        ({"max_length": 512}, "`max_length=512` would truncate audio tokens.*set it to None"),
    ],
)
def test_settings_that_drop_the_audio_raise(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        sft_config(tmp_path, **options)


@pytest.mark.cpu_only("it checks the settings of a machine")
def test_settings_that_distort_the_key_loss_give_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="`loss_type='dft'`"):
        sft_config(tmp_path, loss_type="dft", use_cpu=True)


def test_without_trl_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ImportError, match=r'pip install "peft-listen\[train\]"'):
        sft_config(tmp_path)


@pytest.mark.parametrize("options", [{}, {"gradient_checkpointing": False}, {"gradient_checkpointing": True}])
def test_the_configuration_gives_no_warning(tmp_path, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = sft_config(tmp_path, **SETTINGS, **options)
    # TRL's default is kept.
    assert config.gradient_checkpointing == options.get("gradient_checkpointing", True)


@pytest.mark.cpu_only("it checks the settings of a machine")
@pytest.mark.parametrize("available", [False, True])
def test_memory_is_pinned_for_an_accelerator_only(tmp_path, monkeypatch, available):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: available)
    settings = {name: value for name, value in SETTINGS.items() if name != "use_cpu"}
    assert sft_config(tmp_path, **settings).dataloader_pin_memory == available
    assert sft_config(tmp_path, dataloader_pin_memory=True, **settings).dataloader_pin_memory
