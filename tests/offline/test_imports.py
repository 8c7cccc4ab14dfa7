"""The packages beside the library depend on it and on `offline`, and not on each other."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).parents[2]
ALLOWED = {"offline": set(), "demo": {"offline"}, "benchmarks": {"offline"}, "examples": set()}


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_those_below_it(package: str) -> None:
    others = ALLOWED.keys() - ALLOWED[package] - {package}
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        imported = re.findall(r"^\s*(?:from|import) (\w+)", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert not others & set(imported), path
