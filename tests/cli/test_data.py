import json

import numpy as np
import soundfile

from peft_listen_cli import main


def write(tmp_path, *clips):
    soundfile.write(tmp_path / "tone.wav", 0.3 * np.sin(np.arange(4_000) / 10), 16_000)
    path = tmp_path / "data.jsonl"
    rows = [{"audio": clip, "instruction": "What is it?", "answer": "a tone", "task": "sounds"} for clip in clips]
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_good_data_exits_with_0(tmp_path, capsys):
    path = write(tmp_path, "tone.wav", "tone.wav")
    assert main(["data", "check", path]) == 0
    assert capsys.readouterr().out == f"{path}: no problems\n"


def test_problems_are_listed_with_their_lines_and_exit_with_1(tmp_path, capsys):
    path = write(tmp_path, "tone.wav", "missing.wav")
    assert main(["data", "check", path]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{path}, line 2: ") and "missing.wav: no such audio file" in first
    assert last == f"{path}: 1 problem"


def test_a_missing_data_file_exits_with_2(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path / "none.jsonl")]) == 2
    assert "none.jsonl" in capsys.readouterr().err
