"""
Device nodes for tests of output paths, in the temporary folder of a test.

A test must not name a device of the machine as an output: if the refusal that it tests ever breaks, a test run by root
replaces the device by a file.
"""

import os
import stat
from pathlib import Path

import pytest


def make_null_device(path: Path) -> Path:
    """Creates a node that acts like `/dev/null`; skips the test if the user may not create one."""
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("Device nodes can be created by root only.")
    return path
