"""`peft-listen train`: options of a file, exit codes, and several processes."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import peft_listen_cli
from peft_listen.runs import AdapterOptions, DataOptions, ListenOptions, ModelOptions, RunArguments
from peft_listen_cli import main
from tests import small_models


@pytest.fixture(scope="module")
def config(tmp_path_factory, examples):
    """A YAML file for a run of 12 steps."""
    folder = tmp_path_factory.mktemp("train")
    small_models.save_chat_base(folder / "base")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    (folder / "config.yaml").write_text(
        f"""
model: {folder}/base
train_data: [{folder}/rows.jsonl]
test_data: [{folder}/rows.jsonl]
listen_pool_size: 6
listen_prompt_length: 2
max_steps: 12
max_new_tokens: 3
save_steps: 2
logging_steps: 1
per_device_train_batch_size: 2
use_cpu: true
disable_tqdm: true
"""
    )
    return str(folder / "config.yaml")


def test_a_finished_run_is_shown_and_other_options_are_refused(config, tmp_path, capsys):
    run = str(tmp_path / "run")
    assert main(["train", config, "--output-dir", run]) == 0
    log = json.loads(Path(run, "training.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss" in row] == list(range(1, 13))
    capsys.readouterr()
    assert main(["train", config, "--output-dir", run]) == 0
    shown = capsys.readouterr().out
    assert "The run was finished before." in shown and "| asr | 2 | wer (lower is better) |" in shown
    assert main(["train", config, "--output-dir", run, "--learning-rate", "1e-2"]) == 2
    assert "learning_rate: 0.0003 before, 0.01 now" in capsys.readouterr().err
    assert main(["predict", f"{run}/model", str(Path(config).parent / "rows.jsonl"), "-o", str(tmp_path / "p")]) == 0


def test_skipped_rows_are_counted_in_the_result(config, tmp_path, capsys):
    line = Path(config).with_name("rows.jsonl").read_text().splitlines()[0]
    (tmp_path / "rows.jsonl").write_text(json.dumps({**json.loads(line), "audio": "missing.wav"}) + "\n" + line)
    command = ["train", config, "--output-dir", str(tmp_path / "run"), "--max-steps", "1"]
    command += ["--train-data", str(tmp_path / "rows.jsonl"), "--on-bad-clip", "skip"]
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_skipped"] == {"train": 1, "eval": 0, "test": 0}
    assert main(command) == 0
    assert (
        "1 rows of train_data were skipped, because a clip cannot be loaded: see skipped.json."
        in capsys.readouterr().out
    )


@pytest.mark.slow  # three processes import torch
def test_two_processes_train_and_score(config, tmp_path):
    source = str(Path(peft_listen_cli.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": source, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "--module", "peft_listen_cli", "train", config]
    options += ["--output-dir", str(tmp_path / "run"), "--eval-data", str(Path(config).parent / "rows.jsonl")]
    options += ["--eval-strategy", "steps", "--eval-steps", "6", "--max-steps", "6", "--ddp-backend", "gloo"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("The run is finished.") == 1
    log = json.loads((tmp_path / "run" / "training.json").read_text())["log_history"]
    (evaluation,) = [row for row in log if "eval_loss" in row]
    scores = json.loads((tmp_path / "run" / "result.json").read_text())["scores"]["eval"]
    # The processes share the answers in training, and again those of the saved model.
    assert evaluation["eval_asr_cer"] == pytest.approx(scores["asr"]["values"]["cer"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat: 1", "`learning_rat` is not an option. Did you mean learning_rate"),
        ("lora_r: high", "`lora_r`: expected an integer, got 'high'"),
        ("adapter: prompt", "`adapter`: expected one of listen, lora, listen+lora, none, got 'prompt'"),
        ("eval_strategy: no", "YAML reads yes, no, on and off as true and false"),
        ("llm: gpt2", "Leave out one of the two"),
        ("temperature: 0.5", "`temperature` must be at least 1"),
        ("listen_selector: best", "best"),
        ("train_data: [none.jsonl]", "none.jsonl: no such data file"),
        ("early_stopping_patience: 2", "eval"),
        ("deepspeed: {stage: [}", "is not a YAML file"),
    ],
)
def test_options_that_are_not_possible_exit_with_2(config, tmp_path, line, message, capsys):
    name = line.partition(":")[0]
    kept = [each for each in Path(config).read_text().splitlines() if not each.startswith(f"{name}:")]
    (tmp_path / "config.yaml").write_text("\n".join([*kept, line, f"output_dir: {tmp_path}/run"]))
    assert main(["train", str(tmp_path / "config.yaml")]) == 2
    error = capsys.readouterr().err
    assert "peft-listen: error: " in error and message in error
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_without_a_model_or_a_file_the_exit_code_is_2(capsys):
    assert main(["train"]) == 2
    assert "There is no base model" in capsys.readouterr().err
    assert main(["train", "none.yaml"]) == 2
    assert "none.yaml: no such file" in capsys.readouterr().err


def test_help_begins_with_what_every_run_needs(capsys):
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    help_text, _, epilog = capsys.readouterr().out.partition("\nEvery option is a name in the YAML file")
    assert epilog and help_text.startswith("usage: peft-listen train [config] [--json] [--option VALUE ...]\n")
    headings = [line for line in help_text.splitlines() if re.fullmatch(r"[a-z].*:", line)]
    expected = ["positional", "options", "base model", "data", "training", "adapter", "pool", "other training"]
    assert len(headings) == len(expected) and all(map(str.startswith, headings, expected)), headings
    parts = re.split(f"^(?:{'|'.join(map(re.escape, headings))})$", help_text, flags=re.MULTILINE)
    shown = [re.findall(r"^  (--[\w-]+)", part, flags=re.MULTILINE) for part in parts]
    assert shown[5][:2] == ["--output-dir", "--max-steps"] and "--do-train" in shown[8]
    names = [name for part in shown for name in part]
    assert len(set(names)) == len(names)
    for options in (ModelOptions, AdapterOptions, ListenOptions, DataOptions, RunArguments):
        for field in dataclasses.fields(options):
            assert f"--{field.name.replace('_', '-')}" in names or not field.init


def test_help_explains_every_option_with_its_default(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["train", "--help"])
    assert exit_info.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for text in (
        "--listen-pool-size LISTEN_POOL_SIZE Number of key-value pairs in the pool (default: 400).",
        "--lora-r LORA_R LoRA: rank. (default: 8)",
        "(default: 0.0003)",
        "--temperature",
    ):
        assert text in shown
