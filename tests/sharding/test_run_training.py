"""`peft-listen train` in two processes, with DistributedDataParallel and with FSDP2, gives the result of one process."""

import json
from pathlib import Path

import pytest

from tests import small_models
from tests.sharding.launching import run_two_processes
from tests.sharding.run_training import make_run, summary


pytestmark = [pytest.mark.slow, pytest.mark.cpu_only("its processes use gloo")]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_models.save_chat_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Rows with and without a clip, so that some batches of a process have none."""
    folder = tmp_path_factory.mktemp("data")
    small_models.write_wav(folder / "clip.wav", 0.5)
    rows = [
        {"audio": "clip.wav", "instruction": "What is said?", "answer": "the fox", "task": "speech"},
        {"audio": None, "instruction": "Is it?", "answer": "a lazy dog", "task": "text"},
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows * 4), encoding="utf-8")
    return str(folder / "rows.jsonl")


@pytest.fixture(scope="module", params=["listen", "lora", "listen+lora"])
def adapter(request):
    return request.param


@pytest.fixture(scope="module")
def alone(adapter, base, data, tmp_path_factory):
    return summary(make_run(base, data, tmp_path_factory.mktemp("alone") / "run", 1, adapter).run())


def in_two_processes(kind, base, data, folder):
    outputs = run_two_processes(
        "tests.sharding.run_training", [base, data, str(folder), kind, "590"], folder, timeout=600
    )
    found = []
    for rank, output in enumerate(outputs):
        file = folder / f"{kind}-{rank}.json"
        assert file.exists(), output[-3000:]
        found.append(json.loads(file.read_text()))
    return found


def check(found, expected):
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-3, abs=2e-3)  # the log rounds
    assert expected["losses"][0] - expected["losses"][-1] > 0.05
    assert found["eval_loss"] == pytest.approx(expected["eval_loss"], rel=2e-3)
    assert found["scores"].keys() == expected["scores"].keys() == {"speech", "text"}


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
def test_two_processes_give_the_result_of_one(way, adapter, alone, base, data, tmp_path):
    kind = f"{way} {adapter}"
    found = in_two_processes(kind, base, data, tmp_path)
    assert found[0] == found[1]
    check(found[0]["whole"], alone)
    assert found[0]["share of sharded parameters"] == (1.0 if way == "FSDP2" else 0.0)
    if way == "FSDP2":
        # Its checkpoint contains the adapter, the state of the optimizer, and the adapter's running state.
        assert found[0]["continued"] == found[0]["whole"]
        # A run that was killed after its last step restores the model from the last checkpoint.
        assert found[0]["restored"] == found[0]["whole"] and found[0]["is restored exactly"]


def test_a_row_that_two_processes_skip_is_counted_once(base, data, tmp_path):
    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    for row in rows:
        row["audio"] = row["audio"] and str(Path(data).with_name(row["audio"]))
    bad = {**rows[0], "audio": "missing.wav"}
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in (bad, *rows, bad)), encoding="utf-8"
    )
    expected = summary(make_run(base, data, tmp_path / "alone", 1, "listen").run())
    found = in_two_processes("DDP skip", base, str(tmp_path / "rows.jsonl"), tmp_path)
    assert found[0] == found[1]
    check(found[0]["whole"], expected)
    assert found[0]["num_skipped"] == {"train": 2, "eval": 2, "test": 2}
