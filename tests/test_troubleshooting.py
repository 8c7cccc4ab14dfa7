"""The messages that docs/troubleshooting.md quotes are those of the sources."""

import ast
import re

import pytest

from tests.pages import ROOT


PAGE = ROOT / "docs" / "troubleshooting.md"
VALUE = "\0"


def quoted_messages(page: str) -> list[str]:
    """The code in the first cells of the tables whose first column is `message`."""
    found: list[str] = []
    for table in re.findall(r"^\| message \|.*\n\|[-|]+\n((?:\|.*\n)+)", page, flags=re.MULTILINE):
        for row in table.splitlines():
            message = re.match(r"\| `([^`]+)` \|", row)
            assert message, f"the first cell is no message: {row}"
            found.append(message[1])
    return found


def texts_of_the_sources() -> list[str]:
    """The strings in the sources, without docstrings, with `VALUE` where an f-string has one."""
    texts = []
    for path in sorted((ROOT / "src").rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if id(node) in docstrings:
                continue
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            constants = [part.value if isinstance(part, ast.Constant) else VALUE for part in parts]
            if all(isinstance(constant, str) for constant in constants) and any(text != VALUE for text in constants):
                texts.append("".join(constants))
    return texts


TEXTS = texts_of_the_sources()


def is_in_the_sources(message: str) -> bool:
    """Whether one string contains all that the message quotes, with anything in place of each `...`."""
    parts = [re.escape(part.strip()) for part in message.split("...") if part.strip()]
    pattern = re.compile(".*?".join(parts), flags=re.DOTALL)
    return any(pattern.search(text) for text in TEXTS)


@pytest.mark.parametrize("message", quoted_messages(PAGE.read_text(encoding="utf-8")))
def test_a_quoted_message_is_one_of_the_sources(message) -> None:
    assert is_in_the_sources(message)


def test_a_message_that_no_source_contains_is_found() -> None:
    assert is_in_the_sources("The prompt pool cannot be ... contains NaN or infinite values.")
    assert not is_in_the_sources("The prompt pool cannot be ... contains zeros.")
    assert not is_in_the_sources("contains NaN or infinite values. ... The prompt pool cannot be")


def test_messages_are_read_from_the_tables() -> None:
    page = "| message | meaning |\n|---|---|\n| `one ...` | x |\n| `two` | y |\n\n| cause | cure |\n|---|---|\n| `no` | z |\n"
    assert quoted_messages(page) == ["one ...", "two"]
    assert len(quoted_messages(PAGE.read_text(encoding="utf-8"))) > 30
