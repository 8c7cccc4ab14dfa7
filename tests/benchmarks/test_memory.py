"""Peak memory of the process."""

import pytest
import torch

from benchmarks.memory import CLEAR, peak_memory, reset_peak_memory, used_memory


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak is reset on Linux only")
def test_the_peak_is_that_since_the_reset():
    reset_peak_memory()
    before = used_memory()
    block = torch.ones(64, 2**18)  # 64 MiB
    assert 60 < peak_memory() - before < 100
    assert 60 < used_memory() - before < 100
    del block
    assert 60 < peak_memory() - before
    reset_peak_memory()
    assert peak_memory() - before < 30
