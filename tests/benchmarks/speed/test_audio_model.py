import re
import sys

import pytest
import torch

from benchmarks.speed import audio_model


SMALL = [
    "--encoder-size",
    "64",
    "--encoder-layers",
    "2",
    "--qformer-size",
    "64",
    "--hidden-size",
    "64",
    "--layers",
    "1",
]
SMALL += ["--vocab-size", "64", "--new-tokens", "2", "--repeats", "2", "--warm-up", "0", "--length", "4"]


@pytest.fixture
def run(monkeypatch, capsys):
    threads = torch.get_num_threads()

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["audio_model", *SMALL, "--device", "cpu", "--threads", "1", *arguments])
        audio_model.main()
        return capsys.readouterr().out

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize("arguments", [["--seconds", "10.2"], ["--sound", "--seconds", "3.4"]])
def test_both_models_are_of_one_size_and_compared_in_all_calls(run, arguments):
    output = run(*arguments)
    sizes = {
        name: (float(ours), float(theirs))
        for name, ours, theirs in re.findall(r"\| (.+?) \| (.+?) M \| (.+?) M", output)
    }
    ours, theirs = sizes["audio encoder"]
    assert theirs == pytest.approx(ours, rel=0.35)
    ours, theirs = sizes["language model"]
    assert ours == theirs
    names = re.findall(r"^\| (\w.*?) \| \d+\.\d{3} \| \d+\.\d{3} to", output, flags=re.MULTILINE)
    assert names == [
        "forward, batch 1",
        "generate 2 tokens, batch 1",
        "forward, batch 4",
        "generate 2 tokens, batch 4",
    ]


def test_short_clips_are_compared_with_the_own_form_of_whisper(run):
    output = run("--seconds", "1", "--speech-chunk-multiple", "2")
    ratios = re.findall(
        r"^\| AudioListen's forward at multiples of 2 s / at 30 s, batch (\d) \| (\S+)", output, re.MULTILINE
    )
    assert [batch_size for batch_size, _ in ratios] == ["1", "4"]
    assert all(float(ratio) < 0.6 for _, ratio in ratios)


def test_clips_beyond_one_chunk_are_refused(run, capsys):
    with pytest.raises(SystemExit):
        run("--seconds", "31")
    assert "--seconds must be at most 30, got 31" in capsys.readouterr().err
