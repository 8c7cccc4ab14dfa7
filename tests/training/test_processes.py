"""In two processes, work of one of them, and steps in which one has no rows, do not keep the other waiting."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.sharding.launching import run_two_processes


pytestmark = [pytest.mark.slow, pytest.mark.cpu_only("its processes use gloo")]


class Unpicklable(Exception):
    def __init__(self, text, number):
        super().__init__(f"{text} {number}")
        self.lock = sys.stderr


class OfTwoArguments(Exception):
    """It can be pickled, but not read again."""

    def __init__(self, text, number):
        super().__init__(f"{text} {number}")


ERRORS = [
    OSError(2, "no file", "name"),
    ValueError("no value"),
    ImportError("no module"),
    RuntimeError("no memory"),
    KeyError("no key"),
    Unpicklable("no", 1),
    OfTwoArguments("no", 2),
]


def outcome_of(action):
    from peft_listen.processes import in_main_process

    try:
        return in_main_process(action)
    except Exception as error:
        return [type(error).__name__, str(error)]


def raising(error):
    raise error


def key_gradient(rows):
    """The gradient of keys whose key loss is the sum of their products with the rows."""
    import torch

    from peft_listen.training.unread_key_loss import UnreadKeyLoss

    keys = torch.nn.Parameter(torch.zeros(2, 3))
    loss = UnreadKeyLoss(SimpleNamespace(keys=keys, config=SimpleNamespace(key_loss_weight=0.5)))
    if rows:
        loss.add(torch.tensor(rows) @ keys.sum(dim=0))
    loss.add_to_gradient()
    return None if keys.grad is None else keys.grad.tolist()


def main(folder):
    from accelerate import PartialState

    state = PartialState(cpu=True)
    rank = state.process_index
    found = {
        "errors": [outcome_of(lambda error=error: raising(error)) for error in ERRORS],
        "result": outcome_of(lambda: rank),
        "both": key_gradient([[1.0, 2.0, 3.0]] if rank == 0 else [[3.0, 2.0, 1.0], [2.0, 2.0, 2.0]]),
        "one": key_gradient([[1.0, 2.0, 3.0]] if rank == 1 else []),
        "none": key_gradient([]),
    }
    Path(folder, f"{rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    variables = {"ACCELERATE_USE_CPU": "true"}
    outputs = run_two_processes("tests.training.test_processes", [str(folder)], folder, variables, timeout=120)
    for rank, output in enumerate(outputs):
        assert (folder / f"{rank}.json").exists(), output[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def test_every_error_of_the_main_process_is_raised_in_all(found):
    expected = [[type(error).__name__, str(error)] for error in ERRORS]
    assert found[0]["errors"] == expected
    assert found[1]["errors"] == [
        *expected[:-2],
        ["RuntimeError", "Unpicklable: no 1"],
        ["RuntimeError", "OfTwoArguments: no 2"],
    ]
    assert [each["result"] for each in found] == [0, 0]


def test_a_process_without_rows_takes_part_in_the_gradient_of_the_keys(found):
    for each in found:
        assert each["both"] == [[1.0, 1.0, 1.0]] * 2
        assert each["one"] == [[0.5, 1.0, 1.5]] * 2
        assert each["none"] is None


if __name__ == "__main__":
    main(sys.argv[1])
