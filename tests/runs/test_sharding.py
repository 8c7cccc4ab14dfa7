"""With FSDP, a run has one of the forms that were tried; all others are refused before anything is loaded."""

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser

from peft_listen.runs.sharding import load_trained_state, shard_decoder_layers
from tests import small_models
from tests.pages import ROOT


CONFIGURATIONS = sorted((ROOT / "examples" / "accelerate").glob("*.yaml"))
SUPPORTED = {
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
}


@pytest.fixture
def launched(monkeypatch):
    """Sets the variables that `accelerate launch` sets."""

    def launched(**variables):
        for name, value in (SUPPORTED | variables).items():
            monkeypatch.setenv(name, value)

    return launched


@pytest.mark.parametrize(
    "changes",
    [{}, {"adapter": "lora"}, {"adapter": "listen+lora"}, {"eval_rows_per_task": 0, "eval_strategy": "steps"}],
    ids=str,
)
def test_supported_forms_are_accepted(changes, make_run, launched, data_file):
    launched()
    make_run(**{"eval_data": [data_file], **changes} if "eval_strategy" in changes else changes)


@pytest.mark.parametrize(
    ("variables", "changes", "message"),
    [
        ({"FSDP_VERSION": "1"}, {}, "set `fsdp_version: 2`"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "set `fsdp_cpu_ram_efficient_loading: false`"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {}, "set `fsdp_state_dict_type: FULL_STATE_DICT`"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, {}, "set `mixed_precision: 'no'`"),
        ({}, {"bf16": True}, "no `bf16` or `fp16`"),
        ({}, {"adapter": "none"}, "set `adapter` to listen, lora or listen\\+lora, not none"),
        ({}, {"eval_data": ["DATA"], "eval_strategy": "steps"}, "set `eval_rows_per_task: 0`"),
        ({"ACCELERATE_USE_FSDP": "false"}, {"fsdp": "full_shard"}, "`fsdp` is not used"),
        (
            {},
            {"eval_data": ["DATA"], "eval_rows_per_task": 0, "eval_strategy": "steps", "early_stopping_patience": 1},
            "leave out `load_best_model_at_end` and `early_stopping_patience`",
        ),
    ],
    ids=str,
)
def test_other_forms_are_refused(variables, changes, message, make_run, launched, data_file):
    launched(**variables)
    changes = {name: [data_file] if value == ["DATA"] else value for name, value in changes.items()}
    with pytest.raises(ValueError, match=message):
        make_run(**changes)


def test_a_message_names_all_that_has_to_change(make_run, launched):
    launched(FSDP_VERSION="1", FSDP_STATE_DICT_TYPE="SHARDED_STATE_DICT")
    with pytest.raises(ValueError, match=r"fsdp_version.*; .*fsdp_state_dict_type"):
        make_run(adapter="none")


def test_partitioned_parameters_are_refused(make_run, monkeypatch):
    monkeypatch.setattr("peft_listen.runs.sharding.is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="DeepSpeed ZeRO-3 is not supported. Use FSDP2"):
        make_run()


@pytest.mark.parametrize("named", [None, ["WhisperEncoderLayer"]])
def test_the_units_are_the_layers_of_the_language_model_unless_others_are_named(named):
    class Plugin:
        transformer_cls_names_to_wrap = named

    class Accelerator:
        class state:  # noqa: N801
            fsdp_plugin = Plugin()

    shard_decoder_layers(Accelerator, small_models.make_chat_model())
    assert Plugin.transformer_cls_names_to_wrap == named  # the class itself is unchanged
    assert Accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap == (named or ["LlamaDecoderLayer"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"pytorch_model_fsdp\.bin is missing\. Delete .*checkpoint-4, and run the command again"),
        ({"bias": torch.zeros(2)}, r"lacks weight\. Delete"),
        (
            {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "other": torch.zeros(1)},
            "is from another model: it has other",
        ),
    ],
)
def test_a_checkpoint_without_what_was_trained_is_refused(content, message, tmp_path):
    checkpoint = tmp_path / "checkpoint-4"
    checkpoint.mkdir()
    if content is not None:
        torch.save(content, checkpoint / "pytorch_model_fsdp.bin")
    with pytest.raises(OSError, match=message):
        load_trained_state(torch.nn.Linear(2, 2), checkpoint)


def test_the_trained_tensors_of_a_checkpoint_are_loaded(tmp_path):
    model = torch.nn.Linear(2, 2)
    model.bias.requires_grad_(False)  # a frozen parameter is not in the checkpoint
    torch.save({"weight": torch.ones(2, 2)}, tmp_path / "pytorch_model_fsdp.bin")
    load_trained_state(model, tmp_path)
    assert torch.equal(model.weight, torch.ones(2, 2))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_accepts_the_configuration_files(path, monkeypatch):
    kind = yaml.safe_load(path.read_text(encoding="utf-8"))["distributed_type"]
    assert str(getattr(load_config_from_file(str(path)).distributed_type, "value", "")) == kind
    monkeypatch.setattr("accelerate.commands.launch.is_deepspeed_available", lambda: True, raising=False)
    arguments = launch_command_parser().parse_args(["--config_file", str(path), "train.py"])
    arguments, *_ = _validate_launch_command(arguments)
    assert arguments.use_fsdp == (kind == "FSDP") and arguments.use_deepspeed == (kind == "DEEPSPEED")
    assert arguments.mixed_precision == "no" and arguments.num_processes == 8
    if kind == "DEEPSPEED":
        assert arguments.zero_stage == int(path.stem[-1])
    if kind == "FSDP":
        assert arguments.fsdp_version in (2, "2") and arguments.fsdp_state_dict_type == "FULL_STATE_DICT"
        assert arguments.fsdp_cpu_ram_efficient_loading in (False, "false")


def test_there_is_a_file_for_each_way():
    assert [path.stem for path in CONFIGURATIONS] == ["ddp", "fsdp2", "zero2", "zero3"]
