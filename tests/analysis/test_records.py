"""Selection records: validation of their fields, saving and loading."""

import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from peft_listen.analysis import SelectionRecords
from peft_listen_cli import main


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


def description(**changes):
    fields = {"tasks": ["speech", "sound", "sound"], "inputs": [], "config": {}}
    return {name: value for name, value in (fields | changes).items() if value is not ...}


MALFORMED = {
    "format is a word": ({}, {"format": "one"}, r"its format is 'one', expected an integer from 1"),
    "format is empty": ({}, {"format": ""}, r"its format is ''"),
    "format is a fraction": ({}, {"format": "1.0"}, r"its format is '1\.0'"),
    "format is negative": ({}, {"format": "-1"}, r"its format is '-1'"),
    "format is huge": ({}, {"format": "9" * 5000}, r"its format is '9"),
    "no records": ({}, {"records": None}, r"the metadata has no `records`"),
    "records are not JSON": ({}, {"records": "{"}, r"not readable JSON"),
    "records are nested": ({}, {"records": "[" * 100_000}, r"not readable JSON"),
    "records hold a huge integer": ({}, {"records": "9" * 5_000}, r"not readable JSON"),
    "records are a list": (
        {},
        {"records": "[]"},
        r"must be a JSON object with \['config', 'inputs', 'tasks'\], got 'a list'",
    ),
    "records are null": ({}, {"records": "null"}, r"got 'a NoneType'"),
    "records are a text": ({}, {"records": '"tasks"'}, r"got 'a str'"),
    "no tasks": ({}, description(tasks=...), r"must be a JSON object with .*got \['config', 'inputs'\]"),
    "an unknown field": ({}, description(rows=3), r"got \['config', 'inputs', 'rows', 'tasks'\]"),
    "a field of the class": ({}, description(queries=[]), r"got \['config', 'inputs', 'queries', 'tasks'\]"),
    "tasks are null": ({}, description(tasks=None), r"`tasks` must be a list with one string per row, got a NoneType"),
    "tasks are a number": ({}, description(tasks=3), r"`tasks` must be a list .*got a int"),
    "tasks are a text": ({}, description(tasks="abc"), r"`tasks` must be a list .*got a str"),
    "tasks are an object": ({}, description(tasks={"a": 1, "b": 2, "c": 3}), r"`tasks` must be a list .*got a dict"),
    "a task is null": ({}, description(tasks=["a", None, "b"]), r"`tasks\[1\]` must be a string, got a NoneType"),
    "a task is a list": ({}, description(tasks=[["a"], "b", "c"]), r"`tasks\[0\]` must be a string, got a list"),
    "a task is half a pair": (
        {},
        description(tasks=["a", "b", "\ud83d"]),
        r"`tasks\[2\]` contains half a surrogate pair",
    ),
    "inputs are a number": ({}, description(inputs=1), r"`inputs` must be a list"),
    "inputs are a text": ({}, description(inputs="abc"), r"`inputs` must be a list"),
    "an input is a number": ({}, description(inputs=["a", "b", 3]), r"`inputs\[2\]` must be a string, got a int"),
    "too few inputs": ({}, description(inputs=["a"]), r"3 tasks, but 1 inputs"),
    "config is null": (
        {},
        description(config=None),
        r"`config` must be a dictionary from names to values, got a NoneType",
    ),
    "config is a list": ({}, description(config=["selector"]), r"`config` must be a dictionary .*got a list"),
    "config is a text": ({}, description(config="selector"), r"`config` must be a dictionary .*got a str"),
    "no keys": ({"keys": None}, {}, r"it has no \['keys'\]"),
    "indices are fractions": ({"indices": torch.ones(3, 2)}, {}, r"`indices` must contain integers, got .*float32"),
    "indices are booleans": ({"indices": torch.ones(3, 2).bool()}, {}, r"`indices` must contain integers, got .*bool"),
    "queries are integers": (
        {"queries": torch.ones(3, 3).long()},
        {},
        r"`queries` must contain floating-point numbers",
    ),
    "keys are one number": ({"keys": torch.tensor(1.0)}, {}, r"`keys` has the shape \(\), but two dimensions"),
    "queries have three axes": ({"queries": torch.ones(3, 3, 1)}, {}, r"`queries` has the shape \(3, 3, 1\)"),
    "an index is negative": ({"indices": torch.full((3, 2), -1)}, {}, r"`indices` run from -1 to -1"),
    "NaN in the scores": ({"scores": torch.full((3, 2), torch.nan)}, {}, r"`scores` contains NaN or infinite"),
    "NaN in the queries": ({"queries": torch.full((3, 3), torch.nan)}, {}, r"`queries` contains NaN or infinite"),
    "infinity in the keys": ({"keys": torch.full((4, 3), -torch.inf)}, {}, r"`keys` contains NaN or infinite"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_raises_a_value_error_that_names_it(tmp_path, case, capsys) -> None:
    changed, header, message = MALFORMED[case]
    path = tmp_path / "selections.safetensors"
    tiny().save(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()} | changed
    if "format" in header:
        metadata["peft_listen.selection_records"] = header["format"]
    elif "records" in header:
        metadata["records"] = header["records"]
    elif header:
        metadata["records"] = json.dumps(header)
    metadata = {name: text for name, text in metadata.items() if text is not None}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path, metadata=metadata)
    with pytest.raises(ValueError, match=message) as caught:
        SelectionRecords.load(path)
    assert type(caught.value) is ValueError and str(path) in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert main(["report", str(path), "-o", str(tmp_path / "page.html")]) == 2
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": "abc"}, "`tasks` must be a list"),
        ({"tasks": [1, 2, 3]}, r"`tasks\[0\]` must be a string, got a int"),
        ({"tasks": ["a", "b", "\ud83d"]}, r"`tasks\[2\]` contains half a surrogate pair"),
        ({"inputs": ["a", "b", "\udcff"]}, r"`inputs\[2\]` contains half a surrogate pair"),
        ({"config": [1]}, "`config` must be a dictionary"),
        ({"config": {1: 2}}, "`config` must be a dictionary from names to values"),
        ({"indices": [[0, 1]] * 3}, "`indices` must be a tensor, got a list"),
        ({"keys": None}, "`keys` must be a tensor, got a NoneType"),
        ({"scores": torch.ones(3, 2, dtype=torch.complex64)}, "`scores` must contain floating-point numbers"),
    ],
)
def test_fields_of_a_wrong_type_raise_a_value_error(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


@pytest.mark.parametrize("name", ["scores", "queries", "keys"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_records_that_became_infinite_are_not_saved(tmp_path, name, value) -> None:
    records = tiny()
    getattr(records, name)[0, 0] = value  # in place, as further training changes keys
    with pytest.raises(ValueError, match=rf"selections\.safetensors was not written: `{name}` contains NaN or inf"):
        records.save(tmp_path / "selections.safetensors")
    assert list(tmp_path.iterdir()) == []
