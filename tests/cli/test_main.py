import subprocess
import sys

import pytest

import peft_listen
from peft_listen.cli import COMMANDS, main


def test_the_version(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"peft-listen {peft_listen.__version__}\n"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["data", "check"]])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    assert "usage: peft-listen" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["sing"], ["ask"], ["ask", "a.wav"], ["data"], ["convert-beats", "a.pt"]])
def test_wrong_arguments_exit_with_2_and_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: peft-listen" in capsys.readouterr().err


def test_the_command_is_installed_and_explains_bad_input_without_a_traceback(tmp_path):
    program = "import sys; from peft_listen.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "data", "check", str(tmp_path / "none.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "peft-listen: error: " in result.stderr and "none.jsonl" in result.stderr
    assert "Traceback" not in result.stderr
