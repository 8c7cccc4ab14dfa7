import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.markdown import markers
from benchmarks.speed import decoder


SMALL = ["--device", "cpu", "--size", "small", "--layers", "1", "--length", "6", "--new-tokens", "3", "--repeats", "2"]
SMALL += ["--warm-up", "0", "--pool-size", "12", "--prompt-lengths", "2", "5", "--batch-sizes", "1", "2"]
DOCUMENT = Path(__file__).parents[3] / "docs" / "speed.md"
STORED = Path(decoder.__file__).parent / "h100" / "decoder.json"
METHODS = ["base", "LoRA r=8 (q, v)", "PromptTuning k=2", "LISTEN k=2", "PromptTuning k=5", "LISTEN k=5"]
METHODS += ["LISTEN k=5 residual"]


@pytest.fixture
def run(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["decoder", *SMALL, *arguments])
        decoder.main()
        return capsys.readouterr().out

    return run


def test_every_method_is_in_the_table_and_in_the_file(run, tmp_path):
    output = run("--more-selectors", "residual", "--output", str(tmp_path / "decoder.json"))
    rows = [line.split(" | ") for line in output.splitlines() if line.startswith("| ")]
    assert [row[0].removeprefix("| ") for row in rows[1:]] == METHODS
    assert {len(row) for row in rows} == {9}
    assert f"torch {torch.__version__}" in output and "seed 0" in output
    found = json.loads((tmp_path / "decoder.json").read_text())["measurements"]
    assert [measurement["method"] for measurement in found] == METHODS
    for measurement in found:
        assert all(len(measurement[name][size]) == 2 for name in ("first_token", "decode") for size in "12")
        assert len(measurement["train_step"]) == 2
        assert len(measurement["selection"]) == (2 if "LISTEN" in measurement["method"] else 0)
        assert measurement["train_memory"] is None  # measured on CUDA only
    assert output.endswith(run("--stored", str(tmp_path / "decoder.json")))


def test_the_documented_table_is_that_of_the_stored_measurements(run, tmp_path):
    text = DOCUMENT.read_text(encoding="utf-8")
    begin, end = markers("decoder, cuda")
    before, _, rest = text.partition(begin)
    (tmp_path / "page.md").write_text(before + begin + end + rest.partition(end)[2])
    run("--device", "cuda", "--stored", str(STORED), "--write", str(tmp_path / "page.md"))
    assert (tmp_path / "page.md").read_text() == text


def test_measurements_of_another_device_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--stored", str(STORED))
    assert "was measured on cuda; pass --device cuda" in capsys.readouterr().err


def test_speed_is_that_of_the_tokens_after_the_first():
    measurement = decoder.Measurement("base", first_token={4: [1.0, 1.0, 2.0]}, decode={4: [3.0, 5.0]})
    assert measurement.tokens_per_second(4, new_tokens=9) == [16.0, 8.0]


def test_a_single_new_token_is_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--new-tokens", "1")
    assert "--new-tokens must be at least 2" in capsys.readouterr().err
