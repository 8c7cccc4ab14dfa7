import io
import json

import numpy as np
import pytest
import soundfile
from datasets import Audio, Dataset, DatasetDict, Features, Value

from peft_listen.data import read_examples
from peft_listen.data.recipes import available_recipes
from peft_listen_cli import main
from tests.data.recipes.trees import write_iemocap, write_librispeech


def test_a_data_set_with_missing_clips_exits_with_1_and_says_what_was_skipped(tmp_path, capsys):
    root = write_librispeech(tmp_path)
    arguments = ["prepare", "librispeech", str(root), str(tmp_path / "data"), "--wordings", "first", "--seed", "3"]
    assert main(arguments) == 1
    assert capsys.readouterr().out.splitlines() == [
        f"Wrote {tmp_path}/data/librispeech-dev-clean.jsonl: 3 rows",
        "  1 skipped: the clip is missing (1272-128104-0001)",
        "  1 skipped: the transcript is empty (dev-clean/84/121123/84-121123.trans.txt, line 3)",
        f"Wrote {tmp_path}/data/librispeech-test-clean.jsonl: 1 rows",
        "License of the data: CC BY 4.0. https://www.openslr.org/12",
    ]


def test_rows_that_are_left_out_by_the_rule_exit_with_0(tmp_path, capsys):
    root = write_iemocap(tmp_path)
    assert main(["prepare", "iemocap", str(root), str(tmp_path / "data"), "--split", "session2"]) == 0
    assert "2 left out by the recipe's rule: the emotion is not one of the four classes" in capsys.readouterr().out


def test_splits_rows_and_json(tmp_path, capsys):
    root = write_librispeech(tmp_path)
    options = ["--split", "test-clean", "--split", "dev-clean", "--max-rows", "1", "--check-clips", "--json"]
    assert main(["prepare", "librispeech", str(root), str(tmp_path / "data"), *options]) == 1
    test, dev = json.loads(capsys.readouterr().out)
    assert (test["split"], test["num_rows"], test["skipped"]) == ("test-clean", 1, {})
    assert (dev["split"], dev["num_rows"], dev["num_not_drawn"]) == ("dev-clean", 1, 2)
    assert dev["skipped"]["the clip is missing"] == {"count": 1, "by_rule": False, "rows": ["1272-128104-0001"]}
    assert len(read_examples(dev["path"])) == 1


def test_the_recipes_are_listed_with_their_licenses(capsys):
    assert main(["prepare", "--list"]) == 0
    output = capsys.readouterr().out
    for name in available_recipes():
        assert f"{name}: " in output
    assert output.count("license: ") == len(available_recipes()) - 1  # one's own data have none


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Name a recipe, the folder of the data set and the output folder"),
        (["librispeech"], "peft-listen prepare --list shows the recipes"),
        (["clotho", "{folder}", "{folder}/data"], "There is no recipe 'clotho'"),
        (["librispeech", "{folder}/none", "{folder}/data"], "there is no such folder"),
        (["librispeech", "{folder}", "{folder}/data"], "Expected:\nLibriSpeech/"),
        (["librispeech", "{folder}", "{folder}/data", "--config", "clean"], "add --hub"),
        (["voxceleb1", "{folder}", "{folder}/data", "--hub"], "is not published with its audio on the Hub"),
        (["librispeech", "nobody/nothing", "{folder}/data", "--hub"], "'nobody/nothing' cannot be loaded"),
    ],
)
def test_wrong_arguments_exit_with_2(arguments, message, tmp_path, capsys):
    assert main(["prepare", *(each.format(folder=tmp_path) for each in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("form", ["parquet", "saved dictionary", "saved split"])
def test_datasets_with_the_columns_of_the_hub(form, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    file = io.BytesIO()
    soundfile.write(file, 0.3 * np.sin(np.arange(3_200) / 10), 16_000, format="FLAC")
    columns = {"id": ["1-2-0"], "text": ["HELLO"], "audio": [{"bytes": file.getvalue(), "path": None}]}
    audio = {"bytes": Value("binary"), "path": Value("string")}
    features = Features({"id": Value("string"), "text": Value("string"), "audio": audio})
    dataset = Dataset.from_dict(columns, features=features, split="test").cast_column("audio", Audio())
    source = tmp_path / "source"
    if form == "parquet":
        (source / "data").mkdir(parents=True)
        dataset.to_parquet(source / "data/test-00000-of-00001.parquet")
    elif form == "saved split":
        dataset.save_to_disk(source)
    else:
        DatasetDict({"test": dataset, "validation": dataset}).save_to_disk(source)
    arguments = ["prepare", "librispeech", str(source), str(tmp_path / "data"), "--hub"]
    assert main([*arguments, "--split", "test"]) == 0
    (row,) = read_examples(tmp_path / "data/librispeech-test.jsonl")
    assert row["answer"] == "hello"
    assert soundfile.info(row["audio"]).frames == 3_200
    assert [path.name for path in (tmp_path / "data").glob("*.jsonl")] == ["librispeech-test.jsonl"]
    assert main([*arguments, "--split", "train"]) == 2
    assert "has no split 'train'; its splits are test" in capsys.readouterr().err
