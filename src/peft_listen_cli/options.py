"""Options of a sub-command from dataclasses: a YAML file with values, and arguments that override them."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import enum
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from trl import TrlParser


# Bytes of a YAML file beyond which it is not read.
_MAX_BYTES = 1 << 20


def make_parser(
    dataclass_types: Sequence[Any],
    prog: str,
    description: str,
    epilog: str | None = None,
    usage: str | None = None,
) -> TrlParser:
    """
    A parser with one option for each field of some dataclasses; its help shows all defaults.

    Args:
        dataclass_types (`Sequence[type]`): the dataclasses.
        prog (`str`): name of the command.
        description (`str`): what it does.
        epilog (`str`, *optional*): text after the options, which is shown as it is.
        usage (`str`, *optional*): what takes the place of the list of all options at the beginning.

    Returns:
        [`~trl.TrlParser`]

    Raises:
        ImportError: if trl is not installed.
    """
    try:
        # Not from `trl`, whose lazy module imports more.
        from trl.scripts.utils import TrlParser
    except ImportError as error:
        raise ImportError(f'{prog} needs trl: pip install "peft-listen[train]"') from error
    parser = TrlParser(
        list(dataclass_types),
        prog=prog,
        description=description,
        epilog=epilog,
        usage=usage,
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    for action in parser._actions:
        # The usage and messages show the first spelling, the help of an option the one with hyphens.
        action.option_strings = sorted(action.option_strings, key=lambda name: "_" in name)
    return parser


def split_group(parser: argparse.ArgumentParser, title: str, first: Sequence[str], title_of_others: str) -> None:
    """
    Divides a group of options in the help, where one dataclass has too many to read.

    Args:
        parser (`argparse.ArgumentParser`): the parser.
        title (`str`): heading of the group.
        first (`Sequence[str]`): names of the options that stay in it, in their order.
        title_of_others (`str`): heading of a new group at the end, for the others.

    Raises:
        ValueError: if one of the names is not an option of the group.
    """
    (group,) = (each for each in parser._action_groups if each.title == title)
    actions = group._group_actions
    if unknown := set(first) - {action.dest for action in actions}:
        raise ValueError(f"The group {title!r} has no options {sorted(unknown)}.")
    others = parser.add_argument_group(title_of_others)
    others._group_actions = [action for action in actions if action.dest not in first]
    group._group_actions = sorted(
        (action for action in actions if action.dest in first), key=lambda action: first.index(action.dest)
    )


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, leaves line breaks of the epilog, and shows one of the two spellings of an option."""

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings:
            return super()._format_action_invocation(action)
        shown = [name for name in action.option_strings if "_" not in name] or action.option_strings
        metavar = "" if action.nargs == 0 else f" {self._format_args(action, action.dest.upper())}"
        return f"{shown[0]}{metavar}"

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if not action.option_strings or action.default is None or action.nargs == 0:
            return action.help
        return super()._get_help_string(action)


def parse_options(parser: TrlParser, argv: Sequence[str], config: str = "config") -> tuple[Any, ...]:
    """
    Parses arguments. Values of the YAML file that they name replace the defaults, and arguments replace both.

    Args:
        parser ([`~trl.TrlParser`]): parser of [`make_parser`], with an argument for the YAML file.
        argv (`Sequence[str]`): the arguments.
        config (`str`, defaults to `"config"`): name of the argument for the YAML file.

    Returns:
        `tuple`: an instance of each dataclass, and a namespace of the other arguments.

    Raises:
        ValueError: for a file that is not a YAML mapping, or a key or value that is not valid; the message names it and the
            file. Wrong arguments exit with 2 and the usage, as in all commands.
        OSError: if the file cannot be read.
    """
    namespace, unknown = parser.parse_known_args(list(argv))
    if unknown:
        _refuse_unknown(parser, unknown)
    path = getattr(namespace, config, None)
    if path is not None:
        parser.set_defaults_with_config(**convert_values(parser, read_yaml(path), path))
    *instances, rest = parser.parse_args_into_dataclasses(list(argv), look_for_args_file=False)
    return (*instances, rest)


def _refuse_unknown(parser: argparse.ArgumentParser, unknown: Sequence[str]) -> None:
    names = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    first = next((argument for argument in unknown if argument.startswith("-")), unknown[0])
    written = first.partition("=")[0].replace("_", "-")
    near = difflib.get_close_matches(written, [name for name in names if "_" not in name], n=3, cutoff=0.7)
    advice = f" Did you mean {' or '.join(near)}?" if near else ""
    parser.error(f"unrecognized arguments: {' '.join(unknown)}.{advice}")


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """
    Reads a YAML file whose keys are names of options. Only plain values, lists and mappings are read; repeated keys,
    aliases and tags of Python objects are refused.

    Args:
        path (`str` or `os.PathLike`): the file.

    Returns:
        `dict[str, Any]`

    Raises:
        ValueError: if it is not such a file; the message has the line.
        OSError: if it cannot be read.
        ImportError: if PyYAML is not installed.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                mark = self.peek_event().start_mark
                raise yaml.MarkedYAMLError(problem="aliases are not supported", problem_mark=mark)
            return super().compose_node(parent, index)

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen = set()
            for key, _ in node.value:
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"the key {key.value!r} occurs more than once", problem_mark=key.start_mark
                    )
                seen.add(key.value)
            return super().construct_mapping(node, deep)

    file = Path(path)
    if not file.exists():
        raise FileNotFoundError(f"{path}: no such file (the working directory is {os.getcwd()}). Check the path.")
    if not file.is_file():
        raise OSError(f"{path} is not a regular file; expected a YAML file.")
    if file.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path} has more than {_MAX_BYTES} bytes; expected a YAML file of options.")
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), Loader)  # a subclass of the safe loader
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not a YAML file of options: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(
            f"{path} is a YAML file of another form; expected one mapping from names of options to values, e.g. "
            "`learning_rate: 1.0e-3`."
        )
    return content


def convert_values(parser: argparse.ArgumentParser, values: Mapping[str, Any], source: Any) -> dict[str, Any]:
    """
    Converts the values of a YAML file to the types of the options, with the same checks as on the command line.

    Args:
        parser (`argparse.ArgumentParser`): the parser.
        values (`Mapping[str, Any]`): values by the names of the options, with underscores.
        source (`Any`): name of the file, for messages.

    Returns:
        `dict[str, Any]`: the converted values.

    Raises:
        ValueError: for an unknown name, with the most similar ones, or a value that does not fit; all of them are listed.
    """
    # Of the two actions of a switch, `--option` and `--no_option`, the first takes a value.
    actions: dict[str, argparse.Action] = {}
    for action in parser._actions:
        if action.option_strings and action.dest != "help":
            actions.setdefault(action.dest, action)
    dictionaries = _dictionary_fields(getattr(parser, "dataclass_types", ()))
    converted, problems = {}, []
    for name, value in values.items():
        if name not in actions:
            near = difflib.get_close_matches(name.replace("-", "_"), actions, n=3)
            advice = f" Did you mean {' or '.join(near)}?" if near else ""
            problems.append(f"`{name}` is not an option.{advice}")
            continue
        try:
            converted[name] = _convert(actions[name], value, name in dictionaries)
        except ValueError as error:
            problems.append(f"`{name}`: {error}")
    if problems:
        raise ValueError(f"{source}:\n  " + "\n  ".join(problems) + f"\n{parser.prog} --help lists all options.")
    return converted


def _dictionary_fields(dataclass_types: Iterable[Any]) -> set[str]:
    """Names of the fields that accept a mapping."""
    found: set[str] = set()
    for dataclass_type in dataclass_types:
        hints = getattr(dataclass_type, "_VALID_DICT_FIELDS", ())
        found.update(hints)
        found.update(each.name for each in dataclasses.fields(dataclass_type) if "dict" in str(each.type))
    return found


def _convert(action: argparse.Action, value: Any, takes_mapping: bool) -> Any:
    if value is None:
        if action.default is None and not action.required:
            return None
        raise ValueError("expected a value, got null. Leave the line out for the default.")
    if isinstance(value, dict):
        if not takes_mapping:
            several = " or a list of such values" if action.nargs in ("+", "*") else ""
            raise ValueError(f"expected {_expected(action)}{several}, got a mapping.")
        return value
    if action.nargs in ("+", "*"):
        # A single value is a list of one, as on the command line.
        return [_convert_one(action, item) for item in (value if isinstance(value, list) else [value])]
    if isinstance(value, list):
        raise ValueError(f"expected {_expected(action)}, got a list.")
    return _convert_one(action, value)


def _convert_one(action: argparse.Action, value: Any) -> Any:
    name = getattr(action.type, "__name__", "")
    if isinstance(value, bool) and name != "string_to_bool":
        raise ValueError(
            f"expected {_expected(action)}, got {str(value).lower()}. YAML reads yes, no, on and off as true and false; "
            "put the word in quotes if it is meant."
        )
    if isinstance(value, (dict, list)):
        raise ValueError(f"expected {_expected(action)}, got {value!r}.")
    if isinstance(value, float) and name == "int" and value.is_integer():
        value = int(value)  # YAML's 1.0e+4
    try:
        convert: Any = action.type or str
        result = convert(str(value).lower() if isinstance(value, bool) else str(value))
    except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
        raise ValueError(f"expected {_expected(action)}, got {value!r}.") from error
    if action.choices is not None and result not in action.choices:
        raise ValueError(f"expected {_expected(action)}, got {value!r}.")
    return result


def _expected(action: argparse.Action) -> str:
    """What a value has to be; for an option that takes several, each of them."""
    if action.choices is not None:
        return f"one of {', '.join(map(str, action.choices))}"
    if isinstance(action.type, enum.EnumMeta):
        return f"one of {', '.join(str(member.value) for member in action.type)}"  # type: ignore[var-annotated]
    name = getattr(action.type, "__name__", "str")
    return {"string_to_bool": "true or false", "int": "an integer", "float": "a number", "str": "a text"}.get(
        name, name
    )
