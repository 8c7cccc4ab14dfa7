"""Options of dataclasses: a YAML file gives values, arguments replace them, and everything else is refused by name."""

import re
from dataclasses import dataclass, field
from typing import Literal

import pytest

from peft_listen.runs import AdapterOptions, DataOptions, ListenOptions, RunArguments
from peft_listen_cli.evaluate import EvaluateOptions
from peft_listen_cli.options import convert_values, make_parser, parse_options, read_yaml, split_group
from peft_listen_cli.predict import PredictOptions


@dataclass
class Options:
    steps: int = field(default=10, metadata={"help": "Steps."})
    rate: float = field(default=0.5, metadata={"help": "Rate."})
    name: str | None = field(default=None, metadata={"help": "Name."})
    kind: Literal["first", "no"] = field(default="first", metadata={"help": "Kind."})
    fast: bool = field(default=False, metadata={"help": "Fast."})
    tasks: list[str] = field(default_factory=list, metadata={"help": "Tasks."})
    counts: list[int] = field(default_factory=list, metadata={"help": "Counts."})


def parse(*argv, yaml=None, folder=None):
    parser = make_parser([Options], "test", "A test.")
    parser.add_argument("--config")
    if yaml is not None:
        (folder / "c.yaml").write_text(yaml, encoding="utf-8")
        argv = (*argv, "--config", str(folder / "c.yaml"))
    return parse_options(parser, argv)[0]


def test_values_of_the_file_are_converted_and_arguments_replace_them(tmp_path):
    yaml = "steps: 1e2\nrate: 3e-4\nname: 12\nkind: 'no'\nfast: true\ntasks: [a, 7]\n"
    yaml = yaml.replace("1e2", "1.0e+2")
    assert parse(yaml=yaml, folder=tmp_path) == Options(100, 3e-4, "12", "no", True, ["a", "7"])
    assert parse("--steps", "3", "--tasks", "b", yaml=yaml, folder=tmp_path).steps == 3
    assert parse(yaml="name: null", folder=tmp_path) == Options()


def test_a_single_value_of_a_list_is_a_list_of_one(tmp_path):
    given = parse(yaml="tasks: a.jsonl\ncounts: 2", folder=tmp_path)
    assert given == parse("--tasks", "a.jsonl", "--counts", "2") == Options(tasks=["a.jsonl"], counts=[2])


def test_every_list_of_a_run_may_be_a_single_value(tmp_path):
    parser = make_parser([DataOptions, AdapterOptions, ListenOptions, RunArguments], "test", "A test.")
    lists = [action for action in parser._actions if action.nargs in ("+", "*")]
    names = {"train_data", "eval_data", "test_data", "metrics", "task_weights", "hub_include", "init_keys_at_steps"}
    assert names < {action.dest for action in lists}
    for action in lists:
        # Of an enumeration, the value of a member.
        value = 1 if action.type is int else "underflow_overflow" if action.dest == "debug" else "a"
        assert convert_values(parser, {action.dest: value}, "c.yaml") == {action.dest: [value]}
    with pytest.raises(ValueError, match="`debug`: expected one of underflow_overflow, tpu_metrics_debug, got 'a'"):
        convert_values(parser, {"debug": "a"}, "c.yaml")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("step: 3", "`step` is not an option. Did you mean steps"),
        ("steps: many", "`steps`: expected an integer, got 'many'"),
        ("steps: 1.5", "`steps`: expected an integer, got 1.5"),
        ("steps: true", "`steps`: expected an integer, got true"),
        ("steps: [1]", "`steps`: expected an integer, got a list"),
        ("steps: {a: 1}", "`steps`: expected an integer, got a mapping"),
        ("steps: null", "`steps`: expected a value, got null"),
        ("kind: second", "`kind`: expected one of first, no, got 'second'"),
        ("kind: no", "YAML reads yes, no, on and off as true and false"),
        ("fast: 3.5", "`fast`: expected true or false"),
        ("tasks: true", "`tasks`: expected a text, got true"),
        ("tasks: {a: 1}", "`tasks`: expected a text or a list of such values, got a mapping"),
        ("counts: a", "`counts`: expected an integer, got 'a'"),
        ("tasks: [[a]]", "`tasks`: expected a text"),
        ("steps: x\nrate: y", "(?s)`steps`.*`rate`"),
        ("steps: 1\nsteps: 2", "the key 'steps' occurs more than once"),
        ("steps: &a 1\nrate: *a", "aliases are not supported"),
        ("name: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("- steps", "expected one mapping"),
        ("1: 2", "expected one mapping"),
        ("", "expected one mapping"),
        ("steps: [", "is not a YAML file"),
        ("[" * 5000, "is not a YAML file"),
        ("env:\n  PATH: x", "`env` is not an option"),
        ("config: other.yaml\nhelp: true", "(?s)`help` is not an option"),
    ],
)
def test_files_with_something_else_are_refused(tmp_path, yaml, message):
    with pytest.raises(ValueError, match=message):
        parse(yaml=yaml, folder=tmp_path)


def test_files_that_cannot_be_read_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.yaml: no such file"):
        read_yaml(tmp_path / "none.yaml")
    with pytest.raises(OSError, match="not a regular file"):
        read_yaml(tmp_path)
    (tmp_path / "big.yaml").write_text("# " + "x" * (1 << 20))
    with pytest.raises(ValueError, match="more than 1048576 bytes"):
        read_yaml(tmp_path / "big.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9")
    with pytest.raises(ValueError, match="not a YAML file"):
        read_yaml(tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--stepz", "3"], "unrecognized arguments: --stepz 3. Did you mean --steps?"),
        (["--ste", "3"], "unrecognized arguments"),  # no abbreviations, which a new option would make ambiguous
        (["--steps", "x"], "invalid int value: 'x'"),
    ],
)
def test_wrong_arguments_exit_with_2(argv, message, capsys):
    with pytest.raises(SystemExit) as exit_info:
        parse(*argv)
    assert exit_info.value.code == 2
    assert message in capsys.readouterr().err


def test_help_shows_every_default(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    shown = capsys.readouterr().out
    for default in ("10", "0.5", "first", "False"):
        assert f"(default: {default})" in shown


def test_the_usage_and_the_messages_spell_options_as_the_help_does(capsys):
    for arguments in ([EvaluateOptions], [PredictOptions]):
        parser = make_parser(arguments, "test", "A test.")
        assert not re.findall(r"--\w*_", parser.format_help() + parser.format_usage())
    with pytest.raises(SystemExit):
        parse_options(parser, ["--max_new_tokens", "x"])
    assert "argument --max-new-tokens/--max_new_tokens: invalid int value" in capsys.readouterr().err


def test_a_group_of_the_help_is_divided():
    parser = make_parser([Options], "test", "A test.")
    with pytest.raises(ValueError, match=r"The group 'options' has no options \['pace'\]"):
        split_group(parser, "options", ["rate", "pace"], "others")
    split_group(parser, "options", ["rate", "help"], "others")
    shown = parser.format_help()
    places = [shown.index(f"\n  {name} ") for name in ("--rate", "-h", "--steps", "--kind")]
    assert places == sorted(places) and places[1] < shown.index("others:") < places[2]
    assert parse_options(parser, ["--steps", "3"])[0].steps == 3
