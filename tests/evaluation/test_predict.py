"""Predictions are continued where they stopped, and never mixed with those of other settings."""

import json

import numpy as np
import pytest

from peft_listen.data import read_examples, read_predictions
from peft_listen.evaluation import predict
from peft_listen.evaluation.prediction import answer_rows
from peft_listen.evaluation.prediction_file import PredictionFile


@pytest.fixture
def rows(examples):
    clips = [example["audio"] for example in examples]
    messages = [
        {"role": "user", "content": [{"type": "audio"}, {"type": "text", "text": "Who?"}]},
        {"role": "assistant", "content": "a man"},
        {"role": "user", "content": [{"type": "audio"}]},
        {"role": "assistant", "content": "a woman"},
    ]
    chat = {"messages": messages, "audio": clips[:2], "instruction": "", "answer": "a woman", "task": "asr"}
    several = {**examples[0], "audio": clips[1:3], "system": "Be brief."}
    return [*examples[:2], chat, several, {**examples[0], "audio": None, "metric": "wer"}]


class Counter:
    """A pipeline that counts its calls, and fails after some of them."""

    def __init__(self, pipe, limit=100):
        self.pipe, self.limit, self.batches = pipe, limit, []

    def load(self):
        return self

    def __call__(self, inputs, **kwargs):
        if len(self.batches) == self.limit:
            raise OSError("interrupted")
        self.batches.append(len(inputs))
        return self.pipe(inputs, **kwargs)


def run(pipe, rows, path, **changes):
    settings = {"settings": {"model": "small"}, "batch_size": 2, "max_new_tokens": 4, **changes}
    return predict(lambda: pipe, rows, path, **settings)


def test_the_answers_are_those_of_the_pipeline(pipe, rows, tmp_path):
    predictions = run(pipe, rows, tmp_path / "out.jsonl")
    expected = []
    for start in (0, 2, 4):
        expected += answer_rows(pipe, rows[start : start + 2], max_new_tokens=4, do_sample=False)
    assert [row["generated"] for row in predictions] == expected
    for row, prediction in zip(rows, predictions, strict=True):
        assert {name: prediction[name] for name in row} == row
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.settings.json"]


def test_clips_in_messages_are_written_as_clips_of_the_row(pipe, rows, tmp_path):
    content = [[{"type": "audio", "audio": rows[2]["audio"][0]}, {"type": "text", "text": "Who?"}]]
    messages = [{"role": "user", "content": content[0]}, {"role": "assistant", "content": "a man"}]
    (prediction,) = run(pipe, [{"messages": messages, "task": "asr"}], tmp_path / "out.jsonl")
    assert prediction["audio"] == rows[2]["audio"][:1] and prediction["answer"] == "a man"
    assert prediction["messages"][0]["content"][0] == {"type": "audio"}


def test_an_interrupted_run_answers_only_the_missing_batches(pipe, rows, tmp_path):
    whole = run(pipe, rows, tmp_path / "whole.jsonl")
    path = tmp_path / "out.jsonl"
    with pytest.raises(OSError, match="interrupted"):
        run(Counter(pipe, limit=2), rows, path)
    assert not path.exists()
    (part,) = (tmp_path / "out.jsonl.parts").iterdir()
    # A killed process leaves half a line.
    lines = part.read_text().splitlines(keepends=True)
    part.write_text(lines[0] + lines[1][:20])
    counter = Counter(pipe)
    assert run(counter, rows, path) == whole
    assert counter.batches == [2, 1]
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        '{"batch": 9, "generated": ["a", "b"]}',
        '{"batch": 0, "generated": ["a"]}',
        '{"batch": true, "generated": ["a", "b"]}',
        '{"batch": 0, "generated": ["a", 1]}',
        '{"batch": 0}',
        '{"batch": 0, "generated": ["a", ""], "errors": [null]}',
        '{"batch": 0, "generated": ["a", ""], "errors": [null, ""]}',
        '{"batch": 0, "generated": ["a", ""], "errors": [null, 1]}',
        '{"batch": 0, "generated": ["a", ""], "errors": [null, "only if skipped rows are accepted"]}',
        "[" * 5000,
        "no JSON",
    ],
)
def test_lines_of_another_form_do_not_count(rows, tmp_path, line):
    file = PredictionFile(tmp_path / "out.jsonl", rows, {}, batch_size=2)
    file.prepare()
    (tmp_path / "out.jsonl.parts" / "x.jsonl").write_text(line + "\n")
    file.add(1, ["c", "d"])
    assert file.answers() == {1: ["c", "d"]}
    with pytest.raises(OSError, match="2 of 3 batches have no answers"):
        file.finish()


def test_rows_that_were_skipped_are_answered_when_their_clips_are_mended(pipe, rows, tmp_path):
    clip = tmp_path / "late.wav"
    rows = [*rows, {**rows[0], "audio": str(clip)}]
    counter = Counter(pipe, limit=2)
    with pytest.raises(OSError, match="interrupted"):
        run(counter, rows[::-1], tmp_path / "out.jsonl", on_bad_clip="skip")
    assert counter.batches == [1, 2]
    clip.write_bytes(open(rows[0]["audio"], "rb").read())
    # With "skip", a batch that was answered is not tried again; with "error", it is.
    counter = Counter(pipe)
    predictions = run(counter, rows[::-1], tmp_path / "out.jsonl")
    assert counter.batches == [2, 2] and not any("error" in row for row in predictions)
    assert predictions == run(pipe, rows[::-1], tmp_path / "whole.jsonl")


def test_a_skipped_row_of_former_predictions_is_answered(pipe, rows, tmp_path):
    former = {**rows[0], "generated": "", "error": "no such file"}
    (prediction,) = run(pipe, [former], tmp_path / "out.jsonl")
    assert "error" not in prediction


def test_another_choice_is_refused(pipe, rows, tmp_path):
    with pytest.raises(ValueError, match='`on_bad_clip` must be "error" or "skip", got \'ignore\''):
        run(pipe, rows, tmp_path / "out.jsonl", on_bad_clip="ignore")


def test_a_complete_file_is_not_made_again(pipe, rows, tmp_path):
    first = run(pipe, rows, tmp_path / "out.jsonl")
    assert run(None, rows, tmp_path / "out.jsonl") == first  # the pipeline is not even loaded


def test_other_settings_are_refused_with_the_differences(pipe, rows, tmp_path):
    path = tmp_path / "out.jsonl"
    run(pipe, rows, path)
    with pytest.raises(ValueError, match=r"(?s)was made with other settings:\n  batch_size: 2 before, 3 now"):
        run(pipe, rows, path, batch_size=3)
    with pytest.raises(ValueError, match="generation.max_new_tokens: 4 before, 5 now"):
        run(pipe, rows, path, max_new_tokens=5)
    with pytest.raises(ValueError, match="examples: .*\n  num_examples: 5 before, 4 now"):
        run(pipe, rows[:4], path)
    again = run(pipe, rows, path, max_new_tokens=2, overwrite=True)
    assert again == read_predictions(path) and len(again) == 5


def test_a_file_of_another_origin_is_not_replaced(pipe, rows, tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("mine")
    with pytest.raises(ValueError, match="exists, and out.jsonl.settings.json, which would tell"):
        run(pipe, rows, path)
    assert path.read_text() == "mine"


def test_a_damaged_record_or_file_is_named(pipe, rows, tmp_path):
    path = tmp_path / "out.jsonl"
    run(pipe, rows, path)
    whole = path.read_text()
    path.write_text("".join(whole.splitlines(keepends=True)[:3]))
    with pytest.raises(ValueError, match="has 3 predictions, but 5 were written"):
        run(pipe, rows, path)
    (tmp_path / "out.jsonl.settings.json").write_text("[1]")
    with pytest.raises(ValueError, match="is not a record of settings: it contains a list"):
        run(pipe, rows, path)


def test_clips_are_found_from_the_folder_of_the_output(pipe, clips, tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "clip.wav").write_bytes(open(clips[0], "rb").read())
    row = {"audio": "clip.wav", "instruction": "What?", "answer": "x", "task": "t"}
    (tmp_path / "data" / "rows.jsonl").write_text(json.dumps(row))
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path)
    run(pipe, read_examples("data/rows.jsonl"), "out/predictions.jsonl")
    assert json.loads((tmp_path / "out" / "predictions.jsonl").read_text())["audio"] == "../data/clip.wav"
    monkeypatch.chdir(tmp_path / "out")
    (prediction,) = read_predictions("predictions.jsonl")
    run(pipe, [prediction], "again.jsonl")


@pytest.mark.parametrize(("rows", "batch_size"), [([], 2), ([{"audio": None}], 0)])
def test_nothing_to_answer_is_refused(tmp_path, rows, batch_size):
    with pytest.raises(ValueError, match=r"no examples|at least 1"):
        PredictionFile(tmp_path / "out.jsonl", rows, {}, batch_size)


USER = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "a man"}
PLAIN = {"audio": None, "instruction": "Who?", "answer": "a man", "task": "t"}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"messages": [USER], "task": "t"}, "the last of the `messages` is not the assistant's"),
        ({"messages": [USER, ANSWER]}, r"the fields \['task'\] are missing"),
        ({"messages": "Who?", "task": "t"}, "`messages` must be a list"),
        ({name: PLAIN[name] for name in ("audio", "instruction", "task")}, r"the fields \['answer'\] are missing"),
        ({name: PLAIN[name] for name in ("instruction", "answer", "task")}, r"the fields \['audio'\] are missing"),
        ({**PLAIN, "answer": None}, "`answer` must be a string, got None"),
        ({**PLAIN, "audio": [0.5, 0.25]}, "`audio` must be a path"),
        ({**PLAIN, "audio": {"array": np.zeros(9), "sampling_rate": 16000}}, "`audio` must be a path"),
        ({**PLAIN, "audio": ""}, "`audio` must be a path"),
        ({**PLAIN, "references": []}, "`references` must be a list of at least one string"),
        ({**PLAIN, "error": ""}, "`error` must be a string that is not empty"),
        ({**PLAIN, "score": "high"}, "`score` must be a finite number"),
    ],
)
def test_a_row_whose_line_could_not_be_read_is_refused_before_anything_is_generated(row, problem, tmp_path):
    with pytest.raises(ValueError, match=f"Row 1 of the examples cannot be a line of predictions: .*{problem}"):
        run(None, [PLAIN, row], tmp_path / "out.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "change", [{"audio": []}, {"audio": ()}, {"score": 1.5}, {"generated": "a dog"}, {"metric": None}]
)
def test_rows_of_other_forms_are_answered_and_read(change, pipe, tmp_path):
    (prediction,) = run(pipe, [{**PLAIN, **change}], tmp_path / "out.jsonl")
    assert prediction["audio"] is None and prediction == read_predictions(tmp_path / "out.jsonl")[0]
    assert prediction["generated"] == answer_rows(pipe, [PLAIN], max_new_tokens=4, do_sample=False)[0]
