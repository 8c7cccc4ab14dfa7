import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from peft_listen_cli import library_messages


ROOT = Path(__file__).parent.parent.parent
MESSAGE = f"{library_messages._MISSING_KERNEL}: %s. Please make sure ..."
LOG = f"""
import logging
logger = logging.getLogger({library_messages._BITSANDBYTES_CPU!r})
logger.warning({MESSAGE!r}, "No module named 'kernels'")
logger.warning("another message")
"""
COMMAND = (
    "from peft_listen_cli import COMMANDS, main\nCOMMANDS['compare'].run = lambda _: 0\nmain(['compare', 'a', 'b'])"
)


@pytest.mark.parametrize("begin", ["import demo", "import offline", "import benchmarks", COMMAND])
def test_commands_hide_the_message_of_a_missing_kernel_alone(begin):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (ROOT / "src", ROOT)))}
    command = [sys.executable, "-c", f"{begin}\n{LOG}"]
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert result.stderr == "another message\n"


def test_bitsandbytes_logs_this_message():
    spec = find_spec("bitsandbytes")
    if spec is None:
        pytest.skip("bitsandbytes is not installed")
    path = Path(spec.origin).parent.joinpath(*library_messages._BITSANDBYTES_CPU.split(".")[1:]).with_suffix(".py")
    source = path.read_text(encoding="utf-8")
    assert library_messages._MISSING_KERNEL in source
    assert "logging.getLogger(__name__)" in source
