"""The options that the commands share, and where their tables go."""

import argparse
import sys

import pytest
import torch

from benchmarks.markdown import markers
from benchmarks.speed.command import add_options, describe, parse, report
from benchmarks.speed.ratios import CLOCKS


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("\n".join(["before", *markers("tuner, cpu"), "between", *markers("short, cpu"), "after"]))
    return path


@pytest.fixture
def parsed(monkeypatch):
    threads = torch.get_num_threads()

    def parsed(*options, name="tuner", **settings):
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *options])
        parser = argparse.ArgumentParser()
        add_options(parser, name, **settings)
        parser.add_argument("--layers", type=int)
        return parse(parser)

    yield parsed
    torch.set_num_threads(threads)


def test_the_table_is_written_with_its_command_and_machine(parsed, page, capsys):
    arguments = parsed("--device", "cpu", "--write", str(page), "--layers", "2", "--threads", "1", "--clock=cpu")
    report(arguments, describe(arguments), "Two layers.", "| a |", "| b |")
    begin, end = markers("tuner, cpu")
    written = page.read_text().partition(begin)[2].partition(end)[0]
    command = "python -m benchmarks.speed.tuner --device cpu --layers 2 --threads 1 --clock=cpu"
    assert written.startswith(f"\n\n```bash\n{command}\n```\n\nfloat32; ")
    assert "1 thread; " in written and "; CPU time; not run on a GPU. Two layers.\n\n| a |\n\n| b |\n\n" in written
    assert str(page) not in page.read_text()
    assert "\n".join(markers("short, cpu")) in page.read_text()
    assert "Two layers.\n\n| a |\n\n| b |" in capsys.readouterr().out


def test_another_table_and_another_command_can_be_named(parsed, page):
    arguments = parsed("--device", "cpu", f"--write={page}", "--table", "short")
    report(arguments, "a machine", "Sizes.", "| a |", command="")
    begin, end = markers("short, cpu")
    assert page.read_text().partition(begin)[2].partition(end)[0] == "\n\na machine. Sizes.\n\n| a |\n\n"
    assert "\n".join(markers("tuner, cpu")) in page.read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--device", "cuda", "--clock", "cpu"], "--clock cpu does not measure the time on cuda; leave it out"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--dtype", "int8"], "argument --dtype: invalid choice"),
        (["--write", "missing.md"], "--write missing.md: "),
        (["--table", "other"], "Add the lines <!-- other, cpu: begin --> and <!-- other, cpu: end -->"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(parsed, page, capsys, options, message):
    where = [] if "--write" in options else ["--write", str(page)]
    with pytest.raises(SystemExit):
        parsed("--device", "cpu", *where, *options)
    assert message in capsys.readouterr().err


def test_a_command_that_measures_no_time_has_no_clock(parsed, capsys):
    assert not any(name in describe(parsed("--device", "cpu", with_clock=False)) for name in CLOCKS if name != "cpu")
    with pytest.raises(SystemExit):
        parsed("--clock", "cpu", with_clock=False)
    assert "unrecognized arguments: --clock cpu" in capsys.readouterr().err
