import importlib.metadata
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import peft_listen
import peft_listen_cli
from peft_listen_cli import COMMANDS, REPORTED_VERSIONS, main


def run_without(modules, *arguments):
    """Runs the command in a process in which importing these modules raises an error."""
    code = f"import sys; sys.modules.update(dict.fromkeys({modules!r})); from peft_listen_cli import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(Path(peft_listen_cli.__file__).parent.parent)}
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_version_is_shown_with_those_of_the_libraries(capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    shown = dict(line.split(" ", 1) for line in capsys.readouterr().out.splitlines())
    assert shown.keys() == {*REPORTED_VERSIONS, "python"}
    assert shown["peft-listen"] == peft_listen.__version__
    assert shown["transformers"] == importlib.metadata.version("transformers")


@pytest.mark.parametrize(("name", "advice"), [("cache-features", " The same command continues."), ("prepare", "")])
def test_ctrl_c_gives_no_traceback(name, advice, monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(COMMANDS[name], "run", interrupted)
    required = ["data.jsonl", "--model", "model", "--folder", "features"] if name == "cache-features" else []
    assert main([name, *required]) == 130
    assert capsys.readouterr().err == f"peft-listen: interrupted.{advice}\n"


def test_a_library_that_is_not_installed_has_no_version(capsys, monkeypatch):
    monkeypatch.setattr(peft_listen_cli, "REPORTED_VERSIONS", ("no-such-library",))
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out.startswith("no-such-library not installed\n")


# `train` shows the options of transformers' `TrainingArguments`. The parser of older versions of TRL is that of transformers.
HEAVY_COMMANDS = {"train"} if find_spec("trl.scripts._hf_argparser") else {"train", "predict", "evaluate"}
LIGHT_COMMANDS = sorted(set(COMMANDS) - HEAVY_COMMANDS)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([name, "--help"] for name in LIGHT_COMMANDS)])
def test_help_and_version_import_neither_torch_nor_transformers(arguments):
    result = run_without(["torch", "transformers", "peft", "numpy", "peft_listen"], *arguments)
    assert result.returncode == 0, result.stderr
    assert "peft-listen" in result.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS), ["data", "check"]])
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main([*command, "--help"])
    assert exit_info.value.code == 0
    assert "usage: peft-listen" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments", [[], ["sing"], ["ask"], ["ask", "a.wav"], ["data"], ["convert-beats", "a.pt"], ["predict"]]
)
def test_wrong_arguments_exit_with_2_and_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as exit_info:
        main(arguments)
    assert exit_info.value.code == 2
    assert "usage: peft-listen" in capsys.readouterr().err


def test_the_command_is_installed_and_explains_bad_input_without_a_traceback(tmp_path):
    program = "import sys; from peft_listen_cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "data", "check", str(tmp_path / "none.jsonl")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "peft-listen: error: " in result.stderr and "none.jsonl" in result.stderr
    assert "Traceback" not in result.stderr
