"""The paper's configuration is a file for `peft-listen train`; with tiny models it trains, answers and scores."""

import json

import pytest
import yaml

from peft_listen import ListenConfig
from peft_listen.models.audio_listen.configuration_audio_listen import QFORMER_DEFAULTS
from peft_listen_cli import main
from tests.pages import ROOT
from tests.small_models import QFORMER


CONFIG = ROOT / "benchmarks" / "paper" / "train.yaml"


@pytest.fixture(scope="module")
def data_file(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
    return str(path)


@pytest.fixture
def command(parts, data_file, tmp_path, monkeypatch):
    for name, value in QFORMER.items():
        monkeypatch.setitem(QFORMER_DEFAULTS, name, value)
    command = ["train", str(CONFIG), "--output-dir", str(tmp_path / "run")]
    for name, value in parts.items():
        command += [f"--{name}", value]
    for split in ("train", "eval", "test"):
        command += [f"--{split}-data", data_file]
    command += ["--max-steps", "3", "--warmup-steps", "1", "--per-device-train-batch-size", "2", "--eval-steps", "2"]
    command += ["--save-steps", "2", "--logging-steps", "1", "--bf16", "false", "--dtype", "float32", "--use-cpu"]
    return [*command, "--max-new-tokens", "4", "--listen-pool-size", "20"]


def test_the_papers_configuration_trains_answers_and_scores_with_tiny_models(command, tmp_path, capsys):
    assert main([*command, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert {task: score["metric"] for task, score in result["scores"]["test"].items()} == {
        "asr": "wer",
        "sounds": "exact_match",
    }
    log = json.loads((tmp_path / "run" / "training.json").read_text())["log_history"]
    assert [row["step"] for row in log if "loss" in row] == [1, 2, 3]
    assert any("eval_loss" in row for row in log) and not any("eval_asr_wer" in row for row in log)
    adapter = json.loads((tmp_path / "run" / "model" / "adapter_config.json").read_text())
    assert not adapter["center_queries"] and adapter["key_loss_reduction"] == "sum"
    assert adapter["query_ignored_token_ids"] is None and adapter["key_loss_weight"] == 0.01
    rows = (tmp_path / "run" / "test" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(row)["task"] for row in rows] == ["asr", "sounds", "asr", "sounds"]


def test_the_file_holds_the_papers_pool():
    values = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))
    listen = {name.removeprefix("listen_"): value for name, value in values.items() if name.startswith("listen_")}
    assert listen.pop("form") == "paper"
    config = ListenConfig.paper(**listen)
    assert (config.pool_size, config.max_train_prompt_length, config.center_queries) == (400, 400, False)
    assert 2 * config.pool_size * 4096 == 3_276_800


def test_an_override_of_an_unknown_name_is_rejected(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--max-step", "3"])
    assert exit_info.value.code == 2
    assert "unrecognized arguments: --max-step 3. Did you mean --max-steps" in capsys.readouterr().err
