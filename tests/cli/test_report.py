"""`peft-listen report` on an adapter's folder, on a file of selections, and on neither."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from peft import get_peft_model
from transformers import AutoModelForCausalLM

from peft_listen import ListenConfig
from peft_listen.analysis import SelectionRecords
from peft_listen_cli import main


@pytest.fixture
def data_file(tmp_path):
    lines = []
    for number in range(4):
        time = np.arange(3200) / 16_000
        soundfile.write(tmp_path / f"{number}.wav", 0.3 * np.sin(2 * np.pi * 300 * (number + 1) * time), 16_000)
        task = ("pitch", "voice")[number % 2]
        lines.append({"audio": f"{number}.wav", "instruction": f"Which {task}?", "answer": "High.", "task": task})
    path = tmp_path / "test.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return str(path)


@pytest.fixture
def adapter(make_adapted, tmp_path):
    make_adapted("listen").save_pretrained(tmp_path / "my-adapter")
    return str(tmp_path / "my-adapter")


def test_an_adapter_is_run_over_a_data_file_and_its_selections_kept(adapter, data_file, tmp_path, capsys) -> None:
    page, selections = tmp_path / "page.html", tmp_path / "selections.safetensors"
    arguments = ["report", adapter, data_file, "-o", str(page), "--save-records", str(selections), "--batch-size", "3"]
    assert main(arguments) == 0
    output = capsys.readouterr().out
    assert "Prompts in use" in output and output.endswith(f"Wrote {page}\n")
    html = page.read_text(encoding="utf-8")
    assert "<h1>Prompts of my-adapter</h1>" in html
    assert "3.wav · Which voice?" in html
    assert len(re.findall(r'<p class="words(?: far)?">near', html)) > 0
    records = SelectionRecords.load(selections)
    assert records.tasks == ["pitch", "voice"] * 2
    assert records.pool_size == 12
    assert "init_keys_at_steps" not in records.config

    again = tmp_path / "again.html"
    arguments = ["report", str(selections), "-o", str(again), "--title", "Prompts of my-adapter", "--top", "2"]
    assert main(arguments) == 0
    assert "Fraction of the 2 most selected prompts" in again.read_text(encoding="utf-8")


def test_a_report_on_the_adapter_of_a_run_knows_what_the_training_did(
    make_adapted, data_file, tmp_path, capsys
) -> None:
    run = tmp_path / "my-run"
    make_adapted("listen").save_pretrained(run / "model")
    Path(data_file).write_text("\n".join(Path(data_file).read_text().splitlines()[:3]))
    (run / "settings.json").write_text(json.dumps({"init_keys_at_steps": [2]}))
    page, selections = tmp_path / "page.html", tmp_path / "selections.safetensors"
    arguments = ["report", str(run / "model"), data_file, "-o", str(page), "--save-records", str(selections)]
    assert main(arguments) == 0
    html = page.read_text(encoding="utf-8")
    assert "init_keys_at_steps" not in html and "<h1>Prompts of my-run</h1>" in html
    assert SelectionRecords.load(selections).config["init_keys_at_steps"] == [2]
    # Three rows, each with three prompts, select at most nine.
    output = capsys.readouterr().out
    assert re.search(r"Prompts in use +\d+ of 12 +\w+ \(at least 80% of the 9 that 3 inputs can select\)", output)
    # The file of selections of a run or of an adapter has the name of these.
    for folder in (run, run / "model"):
        records = SelectionRecords.load(selections)
        records.save(folder / "selections.safetensors")
        assert main(["report", str(folder / "selections.safetensors"), "-o", str(page)]) == 0
        assert "<h1>Prompts of my-run</h1>" in page.read_text(encoding="utf-8")


def test_a_text_adapter_is_reported_in_one_command(make_llm, make_tokenizer, tmp_path, capsys) -> None:
    make_llm("llama").save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    get_peft_model(base, ListenConfig(pool_size=8, prompt_length=2)).save_pretrained(tmp_path / "text-adapter")
    data, page = tmp_path / "test.jsonl", tmp_path / "page.html"
    rows = [{"audio": None, "instruction": f"Why {n}?", "answer": "So.", "task": "ab"[n % 2]} for n in range(4)]
    data.write_text("\n".join(map(json.dumps, rows)))
    assert main(["report", str(tmp_path / "text-adapter"), str(data), "-o", str(page), "--batch-size", "3"]) == 0
    html = page.read_text(encoding="utf-8")
    assert "<h1>Prompts of text-adapter</h1>" in html and "Why 3?" in html
    assert '<p class="words' in html
    data.write_text(json.dumps(rows[0] | {"audio": "clip.wav"}))
    assert main(["report", str(tmp_path / "text-adapter"), str(data), "-o", str(tmp_path / "other.html")]) == 2
    assert "Row 0 has audio, but the model is a language model without audio" in capsys.readouterr().err
    assert not (tmp_path / "other.html").exists()


@pytest.fixture
def selections(tmp_path):
    path = tmp_path / "selections.safetensors"
    generator = torch.Generator().manual_seed(0)
    SelectionRecords(
        indices=torch.arange(80).reshape(40, 2) // 40 * 4 + torch.tensor([0, 1]),
        scores=torch.zeros(40, 2),
        queries=torch.randn(40, 8, generator=generator),
        keys=torch.randn(8, 8, generator=generator),
        tasks=["pitch"] * 20 + ["voice"] * 20,
    ).save(path)
    return str(path)


def predictions_file(tmp_path, generated, **fields):
    rows = [
        {"audio": None, "instruction": "Which?", "answer": "ab"[row % 2], "task": task, "generated": generated[task]}
        for task in generated
        for row in range(20)
    ]
    path = tmp_path / "predictions.jsonl"
    path.write_text("\n".join(json.dumps(row | fields) for row in rows))
    return str(path)


def test_predictions_are_compared_with_the_chance_level(selections, tmp_path, capsys) -> None:
    page = tmp_path / "page.html"
    arguments = ["report", selections, "-o", str(page)]
    assert main(arguments) == 0
    assert capsys.readouterr().out.startswith("The tasks select different prompts.\n")
    predictions = predictions_file(tmp_path, {"pitch": "a", "voice": "b"})
    assert main([*arguments, "--predictions", predictions]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The tasks select different prompts, but the answers are at chance level."
    assert lines[1].split() == ["Tasks", "answered", "above", "chance", "0", "of", "2", "poor", "(all", "tasks)"]
    assert "  Correct: pitch                  50%         at chance level (guessing: 50%)" in lines
    assert "at chance level" in page.read_text(encoding="utf-8")


def test_wrong_predictions_are_refused_before_a_page_is_written(selections, tmp_path, capsys) -> None:
    page = tmp_path / "page.html"
    arguments = ["report", selections, "-o", str(page), "--predictions"]
    for path, message in (
        (predictions_file(tmp_path, {"pitch": 3}), "predictions.jsonl, line 1: `generated` must be a string, got 3"),
        (str(tmp_path / "missing.jsonl"), "missing.jsonl"),
    ):
        assert main([*arguments, path]) == 2
        assert message in capsys.readouterr().err
    assert main([*arguments, predictions_file(tmp_path, {"pitch": "a"}, task="other")]) == 2
    assert "The predictions contain the tasks ['other'], but the selections are for" in capsys.readouterr().err
    assert not page.exists()


def test_predictions_are_checked_before_the_model_is_loaded(data_file, tmp_path, capsys) -> None:
    arguments = ["report", str(tmp_path / "no-adapter"), data_file, "--predictions"]
    assert main([*arguments, predictions_file(tmp_path, {"pitch": "a", "other": "a"})]) == 2
    assert "The predictions contain the tasks ['other']" in capsys.readouterr().err
    assert main([*arguments, predictions_file(tmp_path, {"pitch": "a"}, answer="")]) == 2
    assert "`answer` of prediction 0 is empty" in capsys.readouterr().err


def test_an_adapter_without_data_and_selections_with_data_are_refused(adapter, data_file, tmp_path, capsys) -> None:
    assert main(["report", adapter]) == 2
    assert (
        "my-adapter is not a file of selections. If it is an adapter, also name the data file"
        in capsys.readouterr().err
    )
    assert main(["report", data_file, data_file]) == 2
    assert "Leave out" in capsys.readouterr().err
    assert main(["report", data_file, "-o", str(tmp_path / "page.html")]) == 2
    assert "test.jsonl is not a safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


def test_the_data_file_is_read_before_the_model(tmp_path, capsys) -> None:
    assert main(["report", str(tmp_path / "no-adapter"), str(tmp_path / "missing.jsonl")]) == 2
    assert "missing.jsonl" in capsys.readouterr().err


def test_a_missing_adapter_is_explained(data_file, tmp_path, capsys) -> None:
    assert main(["report", str(tmp_path / "no-adapter"), data_file]) == 2
    assert re.search(r"There is no file or folder '.*no-adapter'\.", capsys.readouterr().err)


def test_a_mistyped_file_of_selections_is_explained(tmp_path, capsys) -> None:
    assert main(["report", str(tmp_path / "selections.safetensor")]) == 2
    assert re.search(r"There is no file or folder '.*selections\.safetensor'\.", capsys.readouterr().err)
    assert main(["report", "selections.safetensor"]) == 2
    assert "if it should be such a file, check the path" in capsys.readouterr().err
