"""Selection records: validation of their fields, saving and loading."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from peft_listen.analysis import SelectionRecords


@pytest.fixture
def records(make_records):
    return make_records()


def tiny(**changes):
    fields = {
        "indices": torch.tensor([[0, 1], [2, 1], [2, 0]]),
        "scores": torch.tensor([[0.9, 0.5], [0.8, 0.1], [0.7, 0.3]]),
        "queries": torch.eye(3),
        "keys": torch.ones(4, 3),
        "tasks": ["speech", "sound", "sound"],
    }
    return SelectionRecords(**(fields | changes))


def test_sizes_and_task_names() -> None:
    records = tiny()
    assert (records.pool_size, records.prompt_length, records.task_names) == (4, 2, ["sound", "speech"])


def test_usage_counts_the_selections_of_each_task() -> None:
    usage = tiny().usage()
    assert usage.pool_size == 4
    assert usage.counts == {"speech": {0: 1, 1: 1}, "sound": {2: 2, 1: 1, 0: 1}}


def test_selection_rates_are_fractions_of_rows_and_add_up_to_the_prompts_per_row() -> None:
    records = tiny()
    torch.testing.assert_close(records.selection_rates(), torch.tensor([2 / 3, 2 / 3, 2 / 3, 0.0]))
    torch.testing.assert_close(records.selection_rates("sound"), torch.tensor([0.5, 0.5, 1.0, 0.0]))
    assert float(records.selection_rates("speech").sum()) == 2
    with pytest.raises(KeyError, match=r"no task 'music' in the records; the tasks are \['sound', 'speech'\]"):
        records.selection_rates("music")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["speech"]}, r"`indices` has the shape \(3, 2\), but \(1, 2\) is expected for 1 tasks"),
        ({"scores": torch.ones(3, 1)}, r"`scores` has the shape \(3, 1\), but \(3, 2\)"),
        ({"queries": torch.ones(3, 5)}, r"`queries` has the shape \(3, 5\), but \(3, 3\)"),
        ({"indices": torch.zeros(3, dtype=torch.long), "scores": torch.zeros(3)}, r"`indices` has the shape \(3,\)"),
        ({"keys": torch.ones(2, 3)}, "`indices` run from 0 to 2, but the pool has the prompts 0 to 1"),
        ({"queries": torch.full((3, 3), torch.nan)}, "`queries` contains NaN"),
        ({"inputs": ["a", "b"]}, "3 tasks, but 2 inputs"),
        (
            {
                "indices": torch.zeros(0, 2, dtype=torch.long),
                "scores": torch.zeros(0, 2),
                "queries": torch.zeros(0, 3),
                "tasks": [],
            },
            "no selections",
        ),
    ],
)
def test_inconsistent_fields_raise(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_loading_restores_the_saved_records(records, tmp_path) -> None:
    records = dataclasses.replace(records, inputs=["把它翻译成中文 \"' <b>"] * len(records.tasks))
    records.save(tmp_path / "selections.safetensors")
    loaded = SelectionRecords.load(tmp_path / "selections.safetensors")
    for field in dataclasses.fields(records):
        before, after = getattr(records, field.name), getattr(loaded, field.name)
        if torch.is_tensor(before):
            assert torch.equal(before, after) and before.dtype == after.dtype
        else:
            assert before == after
    assert [path.name for path in tmp_path.iterdir()] == ["selections.safetensors"]


def test_a_file_is_safetensors_with_json_metadata(records, tmp_path) -> None:
    records.save(tmp_path / "selections.safetensors")
    with safe_open(tmp_path / "selections.safetensors", framework="pt") as file:
        assert set(file.keys()) == {"indices", "scores", "queries", "keys"}
        assert json.loads(file.metadata()["records"])["tasks"] == records.tasks


def test_a_failed_save_keeps_the_existing_file_and_leaves_no_other(records, tmp_path, monkeypatch) -> None:
    path = tmp_path / "selections.safetensors"
    records.save(path)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="the disk is full"):
        dataclasses.replace(records, inputs=()).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_raises_an_os_error(records, tmp_path) -> None:
    with pytest.raises(OSError, match=r"missing.selections\.safetensors cannot be written"):
        records.save(tmp_path / "missing" / "selections.safetensors")


def test_a_file_without_selection_records_raises(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="is not a file; expected one written by `SelectionRecords.save`"):
        SelectionRecords.load(tmp_path)
    (tmp_path / "text").write_text("hello")
    with pytest.raises(ValueError, match="is not a safetensors file, or is damaged"):
        SelectionRecords.load(tmp_path / "text")
    save_file({"indices": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="does not contain selection records"):
        SelectionRecords.load(tmp_path / "weights.safetensors")


def test_a_file_of_a_newer_version_raises(tmp_path) -> None:
    save_file({"indices": torch.zeros(2)}, tmp_path / "new", metadata={"peft_listen.selection_records": "2"})
    with pytest.raises(ValueError, match="newer version of peft-listen .format 2; this version reads formats up to 1"):
        SelectionRecords.load(tmp_path / "new")
