"""`peft-listen report` on an adapter's folder, on a file of selections, and on neither."""

import json

import numpy as np
import pytest
import soundfile

from peft_listen.analysis import SelectionRecords
from peft_listen.cli import main


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
    records = SelectionRecords.load(selections)
    assert records.tasks == ["pitch", "voice"] * 2
    assert records.pool_size == 12

    again = tmp_path / "again.html"
    arguments = ["report", str(selections), "-o", str(again), "--title", "Prompts of my-adapter", "--top", "2"]
    assert main(arguments) == 0
    assert "Fraction of the 2 most selected prompts" in again.read_text(encoding="utf-8")


def test_an_adapter_without_data_and_selections_with_data_are_refused(adapter, data_file, tmp_path, capsys) -> None:
    assert main(["report", adapter]) == 2
    assert "my-adapter is no file of selections. If it is an adapter, name a data file too" in capsys.readouterr().err
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
    assert "no-adapter' cannot be loaded" in capsys.readouterr().err
