import re
import sys

import pytest
import torch

from benchmarks.memory import CLEAR
from benchmarks.speed import memory
from benchmarks.speed.memory import Measurement


@pytest.mark.slow
def test_a_clip_is_measured_in_a_new_process(monkeypatch, capsys):
    threads = torch.get_num_threads()
    options = ["--size", "small", "--device", "cpu", "--threads", "1", "--seconds", "40", "--encoder-batch-sizes", "2"]
    monkeypatch.setattr(sys, "argv", ["memory", *options])
    memory.main()
    torch.set_num_threads(threads)
    output = capsys.readouterr().out
    (row,) = re.findall(r"^\| 40 s \| 2 \| (\d+) \| (\d+) \| (\d+) \| (\d+) \|$", output, flags=re.MULTILINE)
    features, in_processor, embeddings, in_encoders = map(int, row)
    # Two spectrograms of 80 x 3000 numbers, those of the sound encoder of 128 x 2998, and 118 embeddings of 64 numbers.
    assert (features, embeddings) == (5, 0)
    assert in_processor < 300 and in_encoders < 300
    assert "no two clips fill a batch" in output and "CPU time" not in output


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak is reset on Linux only")
@pytest.mark.slow  # a busy machine frees memory later
def test_the_peaks_do_not_grow_with_the_clip():
    short, long = (memory.measure("small", "cpu", "float32", seconds, 1) for seconds in (30, 240))
    assert (short.chunks, long.chunks) == (1, 8)
    growth = long.features - short.features
    assert growth == pytest.approx(7 * (80 * 3000 + 128 * 2998) * 4 / 2**20, rel=0.1)
    # Without chunks, the processor needs 20 MiB more for each chunk, and the encoder 3 MiB.
    assert long.processor - short.processor < growth + 60
    assert long.encoders - short.encoders < 20


def test_the_longest_clip_is_compared_with_the_first_that_fills_a_batch():
    found = {
        (seconds, size): Measurement(chunks, features=7, processor=9, embeddings=chunks, encoders=peak)
        for size, peaks in ((1, (10, 10, 11)), (4, (10, 40, 50)))
        for (seconds, chunks), peak in zip(((10.0, 1), (120.0, 4), (600.0, 20)), peaks, strict=True)
    }
    lines = memory.table(found).splitlines()
    assert lines[0].startswith("| clip | chunks | features | processor: peak | embeddings | encoders, batch 1: peak |")
    assert lines[4] == "| 600 s | 20 | 7 | 9 | 20 | 11 | 50 |"
    assert [line.partition(": ")[2] for line in lines[-2:]] == [
        "1 MiB more for 600 s than for 10 s, of which 19 MiB are embeddings.",
        "10 MiB more for 600 s than for 120 s, of which 16 MiB are embeddings.",
    ]
