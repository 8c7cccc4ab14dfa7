"""`peft-listen predict` and `peft-listen evaluate`: answers, and scores of each task."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import peft_listen_cli
from peft_listen.data import read_predictions
from peft_listen_cli import main


ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(Path(peft_listen_cli.__file__).parents[1]),
    "OMP_NUM_THREADS": "1",
    "ACCELERATE_USE_CPU": "true",
    "HF_HUB_OFFLINE": "1",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory, examples):
    path = tmp_path_factory.mktemp("data") / "test.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
    return str(path)


@pytest.fixture
def predict(composite_folder, data):
    return ["predict", str(composite_folder), data, "--batch-size", "2", "--max-new-tokens", "3", "--device", "cpu"]


def test_answers_are_written_once_and_reported(predict, tmp_path, capsys):
    output = str(tmp_path / "p.jsonl")
    assert main([*predict, "-o", output]) == 0
    assert capsys.readouterr().out == f"{output}: 4 answers\n"
    modified = os.stat(output).st_mtime_ns
    assert main([*predict, "-o", output, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": output, "num_rows": 4, "num_skipped": 0}
    assert os.stat(output).st_mtime_ns == modified
    assert main([*predict, "-o", output, "--num-beams", "2"]) == 2
    assert "generation.num_beams: 1 before, 2 now" in capsys.readouterr().err


def test_options_of_a_file(predict, tmp_path, capsys):
    (tmp_path / "options.yaml").write_text(
        f"output: {tmp_path}/from_file.jsonl\nmax_new_tokens: 50\nchat_template_kwargs: {{enable_thinking: false}}\n"
    )
    assert main([*predict, "--config", str(tmp_path / "options.yaml")]) == 0
    settings = json.loads((tmp_path / "from_file.jsonl.settings.json").read_text())
    assert settings["generation"]["max_new_tokens"] == 3
    assert settings["generation"]["chat_template_kwargs"] == {"enable_thinking": False}
    assert main([*predict, "-o", str(tmp_path / "p.jsonl"), "--chat-template-kwargs", "[1]"]) == 2
    assert "`chat_template_kwargs` must be a mapping, got [1]" in capsys.readouterr().err
    (tmp_path / "options.yaml").write_text("max_tokens: 50\n")
    assert main([*predict, "--config", str(tmp_path / "options.yaml")]) == 2
    assert "`max_tokens` is not an option. Did you mean max_new_tokens" in capsys.readouterr().err


def test_a_model_that_was_trained_again_is_noticed(predict, tmp_path, make_adapted, capsys):
    make_adapted("listen").save_pretrained(tmp_path / "adapter")
    predict[1] = str(tmp_path / "adapter")
    arguments = [*predict, "-o", str(tmp_path / "p.jsonl")]
    assert main(arguments) == 0
    model = make_adapted("listen")
    for parameter in model.parameters():
        parameter.data += 0.01 * parameter.requires_grad
    model.save_pretrained(tmp_path / "adapter")
    assert main(arguments) == 2
    assert "checkpoint: " in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0


def test_a_change_in_the_base_model_of_an_adapter_is_noticed(
    predict, tmp_path, make_adapted, composite_folder, capsys
):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(composite_folder, base)
    make_adapted("listen").save_pretrained(adapter)
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    predict[1] = str(adapter)
    arguments = [*predict, "-o", str(tmp_path / "p.jsonl")]
    assert main(arguments) == 0
    capsys.readouterr()
    for name in ("chat_template.jinja", "tokenizer.json", "processor_config.json", "config.json"):
        content = (base / name).read_text()
        (base / name).write_text(content + "\n")
        assert main(arguments) == 2, name
        error = capsys.readouterr().err
        assert "base_checkpoint: " in error and " checkpoint: " not in error
        (base / name).write_text(content)
        assert main(arguments) == 0, name
    del config["base_model_name_or_path"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert main(arguments) == 2
    assert (
        f"The model {str(adapter)!r} cannot be loaded. It is an adapter that does not name" in capsys.readouterr().err
    )


def test_a_missing_model_or_folder_exits_with_2(predict, tmp_path, capsys):
    assert main([*predict, "-o", str(tmp_path / "no" / "p.jsonl")]) == 2
    assert "the folder" in capsys.readouterr().err
    predict[1] = str(tmp_path / "no_model")
    assert main([*predict, "-o", str(tmp_path / "p.jsonl")]) == 2
    assert "There is no file or folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as exit_info:
        main([*predict, "--batch-size", "many"])
    assert exit_info.value.code == 2
    assert main([*predict, "--batch-size", "0"]) == 2
    assert "`batch_size` must be at least 1" in capsys.readouterr().err


@pytest.fixture
def damaged(data, tmp_path):
    """The data with a clip that is missing, as the second row, and one that is no sound, as the last."""
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    (tmp_path / "text.wav").write_text("no sound")
    rows.insert(1, {**rows[0], "audio": str(tmp_path / "missing.wav")})
    rows.append({**rows[0], "audio": [rows[0]["audio"], str(tmp_path / "text.wav")]})
    (tmp_path / "damaged.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(tmp_path / "damaged.jsonl")


def test_rows_with_bad_clips_are_skipped_and_counted(predict, damaged, tmp_path, capsys):
    output = tmp_path / "p.jsonl"
    predict[2] = damaged
    command = [*predict, "--batch-size", "3", "-o", str(output)]
    assert main(command) == 2
    assert "missing.wav: no such audio file" in capsys.readouterr().err
    # The same output is continued: rows that were answered stay.
    assert main([*command, "--on-bad-clip", "skip"]) == 0
    assert capsys.readouterr().out == f"{output}: 4 answers, 2 rows skipped\n"
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert ["error" in line for line in lines] == [False, True, False, False, False, True]
    assert "missing.wav: no such audio file" in lines[1]["error"] and lines[1]["generated"] == ""
    assert "text.wav is not an audio file" in lines[5]["error"]
    assert main([*command, "--on-bad-clip", "skip", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"output": str(output), "num_rows": 4, "num_skipped": 2}
    assert main(command) == 2
    assert "p.jsonl has 2 rows that were skipped; the first: " in capsys.readouterr().err


def test_scores_leave_skipped_rows_out_and_count_them(predict, damaged, tmp_path, caplog, capsys):
    predict[2] = damaged
    command = ["evaluate", *predict[1:], "--output-dir", str(tmp_path / "e"), "--on-bad-clip", "skip"]
    command += ["--metrics", "sounds=eer:answers=dog|no"]
    assert main(command) == 0
    assert "| asr | 2 (2 skipped) | wer (lower is better) |" in capsys.readouterr().out
    (message,) = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert message.startswith(f"2 of 6 rows of {damaged} are skipped") and "row 2: " in message
    stored = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert stored["num_skipped"] == 2 and stored["tasks"]["sounds"]["num_skipped"] == 0
    assert (
        main(["evaluate", str(tmp_path / "e" / "predictions.jsonl"), "--output-dir", str(tmp_path / "f"), "--json"])
        == 0
    )
    again = json.loads(capsys.readouterr().out)
    assert again["num_skipped"] == 2 and again["tasks"]["asr"] == stored["tasks"]["asr"]


@pytest.mark.slow  # three processes import torch
def test_two_processes_share_the_rows(predict, tmp_path):
    assert main([*predict, "-o", str(tmp_path / "one.jsonl"), "--batch-size", "1"]) == 0
    # `--cpu` would start one process; `--multi_gpu` starts two, and the variable keeps them on the CPU.
    options = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    options += ["--dynamo_backend", "no", "--main_process_port", "0", "--module"]
    command = [sys.executable, "-m", "accelerate.commands.launch", *options, "peft_listen_cli", *predict]
    command += ["-o", str(tmp_path / "two.jsonl"), "--batch-size", "1"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("4 answers") == 1
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    refused = subprocess.run(
        [*command, "--num-beams", "2"], capture_output=True, text=True, check=False, env=ENVIRONMENT
    )
    assert refused.returncode == 1 and "num_beams: 1 before, 2 now" in refused.stderr


def test_each_task_is_scored_by_its_metric(predict, tmp_path, capsys):
    arguments = ["evaluate", *predict[1:], "--output-dir", str(tmp_path / "e")]
    assert main([*arguments, "--metrics", "sounds=accuracy:labels=dog|no"]) == 0
    table = capsys.readouterr().out
    assert "| asr | 2 | wer (lower is better) |" in table and "| sounds | 2 | accuracy (higher is better) |" in table
    assert (tmp_path / "e" / "scores.md").read_text() == table
    scores = json.loads((tmp_path / "e" / "scores.json").read_text())
    assert scores["tasks"]["asr"]["metric"] == "wer" and scores["data"] == [predict[2]]

    predictions = tmp_path / "e" / "predictions.jsonl"
    rows = [{**row, "generated": row["answer"]} for row in read_predictions(predictions)]
    perfect = tmp_path / "perfect.jsonl"
    perfect.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["evaluate", str(perfect), "--output-dir", str(tmp_path / "f"), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["mean_quality"] == 1 and result["tasks"]["asr"]["value"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["DATA", "DATA"], "is a file of predictions, which contains the answers"),
        (["no_model"], "also name the data file"),
        (["no_model", "DATA", "--metrics", "asr"], "expected TASK=METRIC"),
        (["no_model", "DATA", "--metrics", "speech=wer"], "which have no rows"),
        (["no_model", "DATA", "--metrics", "asr=eer"], "is neither 'Yes' nor 'No'. Set the two answers"),
        (["DATA"], "the fields ['generated'] are missing"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_model_is_loaded(arguments, message, data, tmp_path, capsys):
    arguments = [data if argument == "DATA" else argument for argument in arguments]
    assert main(["evaluate", *arguments, "--output-dir", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err


def test_a_console_without_utf_8_loses_nothing(tmp_path, monkeypatch):
    row = {"audio": None, "instruction": "Übersetze", "answer": "你好", "task": "übersetzen", "generated": "你好"}
    (tmp_path / "p.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")

    def printed(*arguments):
        # What Python makes of PYTHONIOENCODING=ascii.
        console = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
        monkeypatch.setattr(sys, "stdout", console)
        assert main(["evaluate", str(tmp_path / "p.jsonl"), "--output-dir", str(tmp_path), *arguments]) == 0
        console.flush()
        return console.buffer.getvalue().decode("ascii")

    assert "| \\xfcbersetzen | 1 |" in printed()
    assert json.loads(printed("--json"))["tasks"]["übersetzen"]["value"] == 1
    assert "übersetzen" in (tmp_path / "scores.md").read_text(encoding="utf-8")
