import re
import sys

import pytest
import torch

from benchmarks.speed import tuner


SMALL = ["--device", "cpu", "--threads", "1", "--hidden-size", "64", "--layers", "1", "--vocab-size", "64"]
SMALL += ["--batch-size", "2", "--length", "8", "--pool-size", "12", "--prompt-length", "3", "--decode-steps", "2"]
SMALL += ["--repeats", "2", "--warm-up", "0", "--clock", "cpu"]


@pytest.fixture
def run(monkeypatch, capsys):
    threads = torch.get_num_threads()

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["tuner", *SMALL, *options])
        tuner.main()
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


def test_all_ratios_are_in_the_table(run):
    output = run("--memory-repeats", "0")
    rows = re.findall(r"^\| (.+) / (.+) \| ([\d.]+|not measured) \|", output, flags=re.MULTILINE)
    assert [call for call, *_ in rows] == [
        "forward",
        "training step",
        "decoding step",
        "training step",
        "peak memory of a training step above the base model",
    ]
    assert all(float(median) > 0 for *_, median in rows[:-1])
    assert rows[-1][-1] == "not measured"


@pytest.mark.parametrize("method", ["listen", "lora"])
def test_the_memory_of_a_method_is_that_above_the_base_model(run, method):
    assert 0 <= float(run("--memory-of", method)) < 300
