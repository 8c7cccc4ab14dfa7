"""Peak memory of the process."""

import mmap

import pytest

from benchmarks.memory import CLEAR, peak_memory, reset_peak_memory, used_memory


@pytest.mark.skipif(not CLEAR.exists(), reason="the peak is reset on Linux only")
def test_the_peak_is_that_since_the_reset():
    reset_peak_memory()
    before = used_memory()
    # From the operating system: an allocator might reuse memory that the process has.
    block = mmap.mmap(-1, 64 * 2**20)
    for page in range(0, len(block), mmap.PAGESIZE):
        block[page] = 1
    assert 60 < peak_memory() - before < 100
    assert 60 < used_memory() - before < 100
    block.close()
    assert 60 < peak_memory() - before
    reset_peak_memory()
    assert peak_memory() - before < 30
