"""Rows whose clips cannot be loaded are found, with the reason, by one process or by several."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from peft_listen.audio import AudioLimits
from peft_listen.data import bad_clips, find_bad_clips
from peft_listen.data.bad_clips import log_bad_clips, without_bad_clips
from peft_listen.training.feature_cache import find_uncacheable
from tests import small_models
from tests.sharding.launching import run_forked


@pytest.fixture
def rows(clips, tmp_path):
    """Eight rows; the clips of four of them cannot be loaded."""
    (tmp_path / "text.wav").write_text("no sound")
    (tmp_path / "empty.wav").write_bytes(b"")
    cut = Path(clips[2]).read_bytes()
    (tmp_path / "cut.wav").write_bytes(cut[: len(cut) // 2])
    messages = [
        {"role": "user", "content": [{"type": "audio", "audio": str(tmp_path / "text.wav")}]},
        {"role": "assistant", "content": "a"},
    ]
    audio = [
        clips[0],
        str(tmp_path / "missing.wav"),
        [clips[1], str(tmp_path / "empty.wav")],
        None,
        {"array": np.zeros(100), "sampling_rate": 16_000},
        str(tmp_path / "cut.wav"),
    ]
    rows = [{"audio": each, "instruction": "What?", "answer": "a", "task": "t"} for each in audio]
    return [*rows, {"messages": messages}, {**rows[0], "instruction": "Who?"}]


BAD = [1, 2, 5, 6]


def test_the_rows_are_found_with_the_reasons(rows):
    found = find_bad_clips(rows)
    assert list(found) == BAD
    assert "missing.wav: no such audio file" in found[1]
    assert "empty.wav" in found[2] and "cut.wav" in found[5] and "text.wav is not an audio file" in found[6]
    assert find_bad_clips([]) == {}


def test_limits_count_as_reasons(rows):
    found = find_bad_clips(rows, limits=AudioLimits(max_seconds=0.5))
    assert list(found) == [0, *BAD, 7] and "longer than the limit" in found[0]


def test_a_clip_of_several_rows_is_loaded_once(rows):
    loaded = []
    find_bad_clips([*rows, *rows], load=loaded.append)
    paths = [clip for clip in loaded if isinstance(clip, str)]
    assert len(paths) == len(set(paths)) == 6


def test_other_errors_are_not_taken_for_those_of_a_clip(rows):
    def load(clip):
        raise ImportError("no decoder")

    with pytest.raises(ImportError, match="no decoder"):
        find_bad_clips(rows, load=load)
    broken = [{"messages": "Who?"}]
    with pytest.raises(ValueError, match="`messages` must be a list"):
        find_bad_clips(broken)


def test_the_clips_that_were_found_are_not_decoded_again_for_a_cache(rows, tmp_path, monkeypatch):
    # Clips that were modified a moment ago are looked up by their content.
    assert list(find_uncacheable(rows, tmp_path / "cache", show_progress=False)) == BAD
    decoded = []
    monkeypatch.setattr("peft_listen.training.clip_index.load_audio", lambda clip, **_: decoded.append(clip))
    with pytest.raises(AttributeError):  # the clip of the fourth row has no file
        find_uncacheable(rows[4:5], tmp_path / "cache", show_progress=False)
    decoded.clear()
    assert find_uncacheable([rows[0], rows[7]], tmp_path / "cache", show_progress=False) == {}
    assert decoded == []


def test_the_first_ones_are_logged(rows, caplog):
    problems = find_bad_clips(rows)
    with caplog.at_level(logging.WARNING, bad_clips.__name__):
        kept = without_bad_clips(rows, problems, "train.jsonl")
    assert kept == [row for number, row in enumerate(rows) if number not in BAD]
    (record,) = caplog.records
    message = record.getMessage()
    assert message.startswith("4 of 8 rows of train.jsonl are skipped, because a clip cannot be loaded:\n  row 2: ")
    assert "missing.wav" in message and message.endswith("\n  and 1 more")
    log_bad_clips({}, 8, "train.jsonl")
    assert len(caplog.records) == 1


def test_rows_of_which_none_is_left_are_refused(rows):
    with pytest.raises(ValueError, match=r"None of the 1 rows of train\.jsonl has .* The first: .*missing\.wav"):
        without_bad_clips(rows[1:2], {0: find_bad_clips(rows)[1]}, "train.jsonl")


def check_as_process(rank, port, rows, output):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", ACCELERATE_USE_CPU="true")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    PartialState._reset_state()
    PartialState(cpu=True)
    loaded = []

    def load(clip):
        loaded.append(clip)
        bad_clips.load_audio(clip)

    found = find_bad_clips(rows, load=load)
    output.write_text(json.dumps([found, [clip for clip in loaded if isinstance(clip, str)]]))
    os._exit(0)  # gloo at times aborts when a process ends


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.cpu_only("its processes use gloo")
def test_two_processes_share_the_clips_and_find_the_same_rows(rows, tmp_path):
    more = [{**rows[0], "audio": str(small_models.write_wav(tmp_path / f"{n}.wav", 0.1, seed=n))} for n in range(4)]
    expected = {str(number): problem for number, problem in find_bad_clips([*rows, *more]).items()}
    outputs = [tmp_path / f"{rank}.json" for rank in range(2)]
    assert run_forked(check_as_process, [([*rows, *more], output) for output in outputs]) == [0, 0]
    (found, loaded), (other_found, other_loaded) = (json.loads(output.read_text()) for output in outputs)
    assert found == other_found == expected
    assert loaded and other_loaded and len([*loaded, *other_loaded]) == len({*loaded, *other_loaded}) == 10
