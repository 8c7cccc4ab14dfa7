import json
import re
import sys

import pytest
import torch

from benchmarks.speed import speech_chunks
from tests.small_models import make_chat_model, make_chat_processor, write_wav


@pytest.fixture
def folder(tmp_path):
    make_chat_model(speech_chunk_multiple=5).save_pretrained(tmp_path / "model")
    make_chat_processor(speech_chunk_multiple=5).save_pretrained(tmp_path / "model")
    rows = []
    for index, seconds in enumerate((0.5, 1.2)):
        write_wav(tmp_path / f"{index}.wav", seconds, seed=index)
        rows.append({"audio": f"{index}.wav", "instruction": "What?", "answer": "a tone", "task": "sounds"})
    rows.append({"audio": None, "instruction": "What?", "answer": "nothing", "task": "text"})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_times_features_and_answers_are_compared_with_30_seconds(folder, monkeypatch, capsys):
    threads = torch.get_num_threads()
    options = ["--multiples", "5", "30", "--seconds", "1", "--repeats", "2", "--threads", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["x", str(folder / "model"), str(folder / "data.jsonl"), *options])
    speech_chunks.main()
    torch.set_num_threads(threads)
    output = capsys.readouterr().out
    ratios = dict(re.findall(r"^\| (\w+, \d+ s / 30 s, batch \d) \| ([\d.]+)", output, flags=re.MULTILINE))
    assert len(ratios) == 12
    assert float(ratios["encoders, 5 s / 30 s, batch 4"]) < 0.7
    # 25 and 60 frames of 20 ms; the same form gives the same features.
    rows = dict(re.findall(r"^\| (\d+) s compared with 30 s \| (.*) \|$", output, flags=re.MULTILINE))
    assert rows["30"] == "1.000 | 1.000 | 0.00 | 85"
    mean, low, difference, frames = rows["5"].split(" | ")
    assert frames == "85"
    assert -1 < float(low) <= float(mean) < 1 and float(difference) > 0
    assert "equal to those at 5 s, with which it was saved" in output
    assert re.search(r"^\| 5 s \| 0% \| 2 of 2 \|$", output, flags=re.MULTILINE)
    assert re.search(r"^\| 30 s \| 0% \| \d of 2 \|$", output, flags=re.MULTILINE)
