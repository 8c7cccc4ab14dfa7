"""Under DistributedDataParallel, `ListenCallback` trains the keys with the key loss of the rows of all processes."""

import math

import pytest
import torch
from safetensors.torch import load_file

from tests.sharding.launching import run_two_processes


pytest.importorskip("trl")
preference_training = pytest.importorskip("tests.sharding.preference_training")
pytestmark = [pytest.mark.slow, pytest.mark.cpu_only("its processes use gloo")]


def test_the_gradient_of_the_keys_is_that_of_one_process(tmp_path):
    expected = preference_training.first_step(tmp_path / "alone", 1)
    outputs = run_two_processes(
        "tests.sharding.preference_training",
        [str(tmp_path), "590"],
        tmp_path,
        {"ACCELERATE_USE_CPU": "true"},
        timeout=600,
    )
    assert expected["gradient"].abs().max() > 1e-4
    for rank, output in enumerate(outputs):
        file = tmp_path / f"{rank}.safetensors"
        assert file.exists(), output[-3000:]
        found = load_file(file)
        torch.testing.assert_close(found["gradient"], expected["gradient"], atol=1e-6, rtol=1e-5)
        assert float(found["loss"]) == pytest.approx(math.log(2), abs=1e-6)
