"""Runs the tests that use the simulated device in processes of their own; see `simulated_device.py`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import simulated_device


ROOT = Path(__file__).parents[1]
FILES = [
    "tests/test_simulated_device.py",
    "tests/tuners/listen/test_devices.py",
    "tests/models/audio_listen/test_devices_audio_listen.py",
    "tests/training/test_devices_training.py",
]


def test_all_files_with_the_device_are_named() -> None:
    uses = 'usefixtures("simulated")'
    found = [path for path in (ROOT / "tests").rglob("test_*.py") if uses in path.read_text(encoding="utf-8")]
    assert {str(path.relative_to(ROOT)) for path in found} - {"tests/test_own_process.py"} == set(FILES)


@pytest.mark.skipif(not simulated_device.IS_SUPPORTED, reason="this version of torch has no backends in Python")
@pytest.mark.cpu_only("it compares the CPU with the simulated device")
# The tests of trainers need a process in which no other file has used the device.
@pytest.mark.parametrize("files", [FILES[:-1], FILES[-1:]], ids=["all but training", "training"])
def test_the_tests_on_the_simulated_device_pass(files: list[str]) -> None:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-q", "-p", "no:cacheprovider", *files]
    result = subprocess.run(
        command, cwd=ROOT, env={**os.environ, simulated_device.OWN_PROCESS: "1"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout[-5000:]
    assert " passed" in result.stdout and " skipped" not in result.stdout
