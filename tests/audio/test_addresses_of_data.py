"""Data files and `load_audio` agree on what is a URL."""

import base64
import json

import numpy as np
import pytest

from peft_listen.data import check_examples, read_examples
from tests.audio.signals import encode, sine


EXAMPLE = {"instruction": "What?", "answer": "a tone", "task": "sounds"}


@pytest.mark.parametrize(
    "scheme", ["http://", "HTTP://", "HttpS://", "data:audio/wav;base64,", "DATA:audio/wav;base64,"]
)
def test_addresses_are_not_paths_relative_to_the_data_file(tmp_path, scheme):
    audio = f"{scheme}example.org/clip.wav"
    (tmp_path / "data.jsonl").write_text(json.dumps({"audio": audio, **EXAMPLE}))
    (example,) = read_examples(tmp_path / "data.jsonl")
    assert example["audio"] == audio


def test_the_check_reads_data_uris_and_names_them_without_their_content(tmp_path):
    uris = [
        f"data:audio/wav;base64,{base64.b64encode(encode(waveform)).decode()}"
        for waveform in (sine(), np.zeros(8000, "f4"))
    ]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps({"audio": uri, **EXAMPLE}) for uri in uris))
    (problem,) = check_examples(tmp_path / "data.jsonl")
    assert problem.line == 2 and problem.message.startswith("data:audio/wav: the audio is silent")
