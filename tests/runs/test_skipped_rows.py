"""With `on_bad_clip="skip"`, a run leaves out the rows whose clips cannot be loaded, and counts them."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from peft_listen.data import read_predictions
from peft_listen.data.bad_clips import find_bad_clips
from tests.runs.test_training_run import Interrupt, losses


@pytest.fixture
def write(tmp_path):
    def write(name, rows):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def damaged(examples, tmp_path, write):
    """A data file with copies of the clips, of which the second row's is no sound and the fifth row's is missing."""
    rows = []
    for number, row in enumerate(examples):
        rows.append({**row, "audio": str(shutil.copy(row["audio"], tmp_path / f"own{number}.wav"))})
    (tmp_path / "text.wav").write_text("no sound")
    rows.insert(1, {**rows[0], "audio": str(tmp_path / "text.wav")})
    rows.append({**rows[0], "audio": str(tmp_path / "missing.wav")})
    return write("damaged.jsonl", rows), [rows[0], *rows[2:5]]


@pytest.mark.parametrize("cached", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["", "feature cache"])
def test_a_run_trains_and_scores_what_is_left(cached, make_run, damaged, write, tmp_path, caplog):
    data, good = damaged
    cache = {"feature_cache": str(tmp_path / "features")} if cached else {}
    splits = {"eval_strategy": "steps", "eval_steps": 4, **cache}
    only_good = write("good.jsonl", good)
    expected = make_run(
        output_dir=str(tmp_path / "good"),
        train_data=[only_good],
        eval_data=[only_good],
        test_data=[only_good],
        **splits,
    ).run()
    splits |= {"train_data": [data], "eval_data": [data], "test_data": [data]}
    with pytest.raises(OSError, match=r"text\.wav is not an audio file|missing\.wav: no such audio file"):
        make_run(output_dir=str(tmp_path / "refused"), **splits).run()
    with caplog.at_level(logging.WARNING, "peft_listen"):
        result = make_run(on_bad_clip="skip", **splits).run()
    # The training, the evaluation in it and the scores are those of the good rows alone.
    assert losses(result) == losses(expected)
    assert [row["eval_loss"] for row in result.log_history if "eval_loss" in row] == [
        row["eval_loss"] for row in expected.log_history if "eval_loss" in row
    ]
    assert result.num_skipped == {"train": 2, "eval": 2, "test": 2} and expected.num_skipped["train"] == 0
    score = result.scores["test"]["asr"]
    assert (score.num_rows, score.num_skipped) == (2, 2)
    assert replace(score, num_skipped=0) == expected.scores["test"]["asr"]
    assert result.scores["test"]["sounds"] == expected.scores["test"]["sounds"]
    predictions = read_predictions(tmp_path / "run" / "test" / "predictions.jsonl")
    assert ["error" in row for row in predictions] == [False, True, False, False, False, True]
    messages = [record.getMessage() for record in caplog.records if record.name == "peft_listen.data.bad_clips"]
    assert len(messages) == 3 and messages[0].startswith("2 of 6 rows of train_data are skipped")
    assert "row 2: " in messages[0] and "missing.wav" in messages[0]
    card = ModelCard.load(tmp_path / "run" / "model" / "README.md").text
    assert "| train data | 4 rows (2 skipped) of damaged.jsonl;" in card and "| asr | 2 (2 skipped) | wer |" in card
    again = make_run(on_bad_clip="skip", **splits).run()
    assert again == replace(result, was_finished=True)


@pytest.mark.slow
def test_a_continued_run_leaves_out_the_same_rows_without_decoding_them_again(
    make_run, damaged, tmp_path, monkeypatch
):
    data, _ = damaged
    options = {"train_data": [data], "on_bad_clip": "skip"}
    whole = make_run(output_dir=str(tmp_path / "whole"), **options).run()
    with pytest.raises(KeyboardInterrupt):
        make_run([Interrupt(3)], **options).run()
    shutil.copy(tmp_path / "own0.wav", tmp_path / "missing.wav")  # mended in the meantime
    checked = []
    monkeypatch.setattr(
        "peft_listen.runs.skipped_rows.find_bad_clips",
        lambda rows, **kwargs: checked.append(rows) or find_bad_clips(rows),
    )
    resumed = make_run(**options).run()
    assert checked == [] and resumed.num_skipped == {"train": 2, "eval": 0, "test": 0}
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    # Another run has the mended clip.
    assert make_run(output_dir=str(tmp_path / "new"), **options).run().num_skipped["train"] == 1


def test_a_run_that_has_not_begun_may_change_its_mind(make_run, damaged):
    data, _ = damaged
    with pytest.raises(OSError, match=r"text\.wav|missing\.wav"):
        make_run(train_data=[data]).run()
    assert make_run(train_data=[data], on_bad_clip="skip").run().num_skipped["train"] == 2


def test_a_clip_that_vanishes_after_the_check_is_an_error(make_run, damaged, tmp_path):
    from tests.runs.test_faults import Once

    data, _ = damaged
    clip = tmp_path / "own1.wav"
    # Without prompts, the first to read a clip is the data loader.
    with pytest.raises(OSError, match=r"own1\.wav: no such audio file"):
        make_run([Once(clip.unlink)], train_data=[data], on_bad_clip="skip", adapter="lora").run()


def test_data_of_which_nothing_is_left_are_refused_before_the_training(make_run, damaged, write, data_file, tmp_path):
    data, good = damaged
    bad = [json.loads(line) for line in Path(data).read_text().splitlines() if json.loads(line) not in good]
    with pytest.raises(ValueError, match=r"None of the 2 rows of train_data has a clip"):
        make_run(train_data=[write("bad.jsonl", bad)], on_bad_clip="skip").run()
    only = write("test.jsonl", [good[1], *bad])
    with pytest.raises(ValueError, match=r"No row of the tasks \['asr'\] of test_data has a clip"):
        make_run(test_data=[only], on_bad_clip="skip", output_dir=str(tmp_path / "other")).run()
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    "content", ["[1]", '{"train": {"9": "x"}, "eval": {}, "test": {}}', "{", '{"train": {"1": 2}}']
)
def test_a_damaged_list_of_skipped_rows_is_named(content, make_run, damaged, tmp_path):
    data, _ = damaged
    make_run(train_data=[data], on_bad_clip="skip", max_steps=1).run()
    (tmp_path / "run" / "skipped.json").write_text(content)
    with pytest.raises(ValueError, match=r"skipped\.json does not list the skipped rows of this run .*Restore it"):
        make_run(train_data=[data], on_bad_clip="skip", max_steps=1).run()
