"""Clips and tables of one's own, from a folder to a checked data file."""

import json

import pytest

from peft_listen.data import check_examples
from peft_listen.data.recipes import prepare
from peft_listen_cli import main
from tests.data.recipes.trees import write_clip, write_csv, write_text


HEADER = "audio,instruction,answer,task"


def read(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def test_the_rows_have_the_columns_of_the_table(tmp_path):
    source = write_csv(tmp_path / "clips")
    assert main(["prepare", "csv", str(source), str(tmp_path / "data")]) == 0
    train, test = read(tmp_path / "data/csv-train.jsonl"), read(tmp_path / "data/csv-test.jsonl")
    assert [(row["instruction"], row["answer"], row["task"]) for row in train] == [
        ("Which animal is it?", "dog", "name"),
        ("Is it a dog, or a cat?", 'a "dog"', "choice"),
    ]
    assert [(row["answer"], row["id"]) for row in test] == [("007", "clips.csv, line 4")]
    for split in ("train", "test"):
        assert check_examples(tmp_path / f"data/csv-{split}.jsonl") == []


def test_files_are_splits_without_a_column(tmp_path):
    for name in ("train", "validation"):
        write_text(tmp_path / f"clips/{name}.csv", f"{HEADER}\n{name}.wav,What is it?,{name},own\n")
        write_clip(tmp_path / f"clips/{name}.wav")
    reports = prepare("csv", tmp_path / "clips", tmp_path / "data")
    assert [(report.split, report.num_rows) for report in reports] == [("train", 1), ("validation", 1)]
    assert read(reports[1].path)[0]["answer"] == "validation"


def test_rows_that_cannot_be_used_are_counted(tmp_path, capsys):
    write_clip(tmp_path / "clips/a.wav")
    rows = [
        f"{HEADER},split",
        "a.wav,What is it?,dog,own,train",
        "a.wav,What is it?,cat,own,test",
        "b.wav,What is it?,dog,own,train",
        "a.wav,What is it?, ,own,train",
        "a.wav,What is it?,dog,own,",
        "a.wav,What is it?,dog,own,../outside",
        "../a.wav,What is it?,dog,own,train",
        "a.wav",
        "a.wav,Is it a dog, or a cat?,dog,own,train",
    ]
    write_text(tmp_path / "clips/table.csv", "\n".join(rows))
    assert main(["prepare", "csv", str(tmp_path / "clips"), str(tmp_path / "data"), "--json"]) == 1
    reports = {report["split"]: report for report in json.loads(capsys.readouterr().out)}
    assert {split: report["num_rows"] for split, report in reports.items()} == {"train": 1, "test": 1}
    counts = {
        split: sum(reason["count"] for reason in report["skipped"].values()) for split, report in reports.items()
    }
    # Four rows have no split, and count for both.
    assert counts == {"train": 7, "test": 4}
    assert sorted(path.name for path in (tmp_path / "data").iterdir()) == [
        "csv-test.jsonl",
        "csv-train.jsonl",
    ]
    assert main(["prepare", "csv", str(tmp_path / "clips"), str(tmp_path / "data"), "--split", "test"]) == 1
    assert any("column answer is empty" in reason for reason in reports["train"]["skipped"])


def test_the_ending_of_a_table_may_be_in_capitals(tmp_path):
    for name, ending in (("train", "CSV"), ("test", "Csv")):
        write_text(tmp_path / f"clips/{name}.{ending}", f"{HEADER}\na.wav,What is it?,{name},own\n")
    write_clip(tmp_path / "clips/a.wav")
    reports = prepare("csv", tmp_path / "clips", tmp_path / "data")
    assert [(report.split, report.num_rows) for report in reports] == [("test", 1), ("train", 1)]


def test_the_form_of_the_path_is_named(tmp_path):
    clip = write_clip(tmp_path / "clips/dogs/a.wav")
    paths = [str(clip), r"C:\clips\a.wav", "C:/clips/a.wav", r"\\server\clips\a.wav", r"dogs\a.wav", "dogs/a.wav"]
    rows = [f"{path},What is it?,dog,own" for path in paths]
    write_text(tmp_path / "clips/train.csv", "\n".join([HEADER, *rows]))
    (report,) = prepare("csv", tmp_path / "clips", tmp_path / "data")
    assert {reason: skipped.count for reason, skipped in report.skipped.items()} == {
        "the path is absolute; write it relative to the source folder, such as clips/1.wav": 4,
        "the path has a backslash; write it with /, such as clips/1.wav": 1,
    }
    assert report.num_rows == 1


@pytest.mark.parametrize(
    ("name", "header", "message"),
    [
        ("clips.csv", HEADER.replace(",", ";"), r"This file uses ';' between the columns: save it with ','\."),
        ("my clips.csv", HEADER.replace(",", ";"), r"This file uses ';' between"),
        ("clips.csv", '"audio"\t"instruction"\tanswer\ttask', r"This file uses a tab between the columns"),
        (
            "clips.csv",
            "path,instruction,answer,task",
            r"the column 'audio' is missing; .*Expected the columns audio, instruction, answer and task \(split is optional\)",
        ),
        ("clips.csv", "Audio,instruction,anser,task", r"Rename 'Audio' to 'audio'\. Rename 'anser' to 'answer'\."),
        ("clips.csv", f"{HEADER},spilt", r"task', 'spilt'\. Rename 'spilt' to 'split', or to something else\."),
        ("my clips.csv", HEADER, r"has no column 'split'.*Rename it, or add the column"),
    ],
)
def test_another_table_is_refused(name, header, message, tmp_path):
    write_text(tmp_path / "clips" / name, f"{header}\na.wav,What is it?,dog,own\n")
    with pytest.raises(ValueError, match=message):
        prepare("csv", tmp_path / "clips", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_column_of_another_name_is_ignored(tmp_path):
    write_clip(tmp_path / "clips/a.wav")
    write_text(tmp_path / "clips/train.csv", f"{HEADER},speaker,split_id\na.wav,What is it?,dog,own,me,3\n")
    (report,) = prepare("csv", tmp_path / "clips", tmp_path / "data")
    assert report.num_rows == 1


def test_a_folder_without_a_table_is_refused(tmp_path):
    write_clip(tmp_path / "clips/a.wav")
    with pytest.raises(ValueError, match=f"There is no CSV file in {tmp_path}/clips.*Expected:\nclips.csv"):
        prepare("csv", tmp_path / "clips", tmp_path / "data")
    write_text(tmp_path / "clips/train.csv", f"{HEADER}\n")
    with pytest.raises(ValueError, match="train.csv has no rows below its header"):
        prepare("csv", tmp_path / "clips", tmp_path / "data")


def test_the_command_names_skipped_rows_and_no_license(tmp_path, capsys):
    write_clip(tmp_path / "clips/a.wav")
    rows = ["a.wav,What is it?,,own", "a.wav,What is it?,dog,own"]
    write_text(tmp_path / "clips/train.csv", "\n".join([HEADER, *rows]))
    assert main(["prepare", "csv", str(tmp_path / "clips"), str(tmp_path / "data")]) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"Wrote {tmp_path}/data/csv-train.jsonl: 1 rows",
        "  1 skipped: the column answer is empty (train.csv, line 2)",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (f"{HEADER}\ra.wav,What?,dog,own\r".encode(), "the first line is not the header of a table"),
        (f"{HEADER},Größe\na.wav,What?,dog,own,1\n".encode("cp1252"), "the line is not UTF-8"),
        (f"{HEADER},split\na.wav,What?,dog,own,\n".encode(), "no row of the tables has a split. table.csv, line 2"),
    ],
)
def test_a_table_that_is_not_one_is_explained(content, message, tmp_path, capsys):
    write_text(tmp_path / "clips/table.csv", content)
    assert main(["prepare", "csv", str(tmp_path / "clips"), str(tmp_path / "data")]) == 2
    assert message in capsys.readouterr().err
