import re
import sys

import torch

from benchmarks.speed import throughput


SMALL = ["--size", "small", "--device", "cpu", "--threads", "1", "--new-tokens", "2", "--length", "3"]
SMALL += [
    "--pool-size",
    "12",
    "--prompt-length",
    "2",
    "--repeats",
    "2",
    "--warm-up",
    "0",
    "--speech-chunk-multiple",
    "1",
]


def test_every_call_is_measured_for_every_clip_and_batch_size(monkeypatch, capsys):
    threads = torch.get_num_threads()
    options = ["--seconds", "0.6", "1.3", "--batch-sizes", "3", "1"]
    monkeypatch.setattr(sys, "argv", ["throughput", *SMALL, *options])
    throughput.main()
    torch.set_num_threads(threads)
    output = capsys.readouterr().out
    cell = r"[\d.]+ \([\d.]+ to [\d.]+\)"
    rows = re.findall(rf"^\| (\w+) \| (\S+) s \| (\d) \| {cell} \| (\S+) \| ({cell}|) \|$", output, flags=re.MULTILINE)
    expected = [
        (call, seconds, size)
        for seconds in ("0.6", "1.3")
        for call in ("processor", "encode", "generate")
        for size in "13"
    ]
    assert [row[:3] for row in rows] == expected
    assert all(float(factor) > 0 and bool(ratio) == (size == "3") for _, _, size, factor, ratio in rows)
    assert "time per clip / batch 1" in output and "not run on a GPU" in output


def test_a_line_has_speed_real_time_factor_and_the_time_per_clip():
    times = {1: (2.0, 4.0, 2.0), 4: (4.0, 4.0, 4.0)}
    assert throughput.row("encode", 10.0, 1, 30, times) == "| encode | 10 s | 1 | 15.0 (7.5 to 15.0) | 0.2 |  |"
    line = "| encode | 10 s | 4 | 30.0 (30.0 to 30.0) | 0.1 | 0.500 (0.250 to 0.500) |"
    assert throughput.row("encode", 10.0, 4, 30, times) == line


def test_the_measured_calls_do_what_they_are_named_after(monkeypatch):
    parsed = []
    monkeypatch.setattr(sys, "argv", ["throughput", *SMALL])
    monkeypatch.setattr(throughput.Benchmark, "run", lambda self: parsed.append(self) or "")
    throughput.main()
    calls, tokens = parsed[0].calls(1.3, batch_size=2)
    # 65 frames of 20 ms in windows of 17
    assert tokens == 4
    with torch.no_grad():
        assert calls["processor"]()["input_features"].shape == (2, 80, 200)
        assert calls["encode"]().pooler_output.shape == (2 * 4, 64)
        assert calls["generate"]().shape == (2, 4 + 3 + 2)
