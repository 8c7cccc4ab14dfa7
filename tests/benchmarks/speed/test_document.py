"""The page of the measurements says where each of its tables was measured."""

import re
from pathlib import Path

import pytest


TEXT = (Path(__file__).parents[3] / "docs" / "speed.md").read_text(encoding="utf-8")
TABLES = re.findall(r"<!-- (.+), (\w+): begin -->\n(.*?)\n<!-- \1, \2: end -->", TEXT, flags=re.DOTALL)


def test_all_markers_are_in_pairs():
    assert len(TABLES) == TEXT.count(": begin -->") == TEXT.count(": end -->") > 10
    assert len({(name, device) for name, device, _ in TABLES}) == len(TABLES)


@pytest.mark.parametrize(("name", "device", "table"), TABLES, ids=[f"{name}, {device}" for name, device, _ in TABLES])
def test_a_table_has_a_command_and_a_device(name, device, table):
    if device == "cpu":
        assert table.startswith("\n```bash\npython -m benchmarks.speed.")
        assert "--write" not in table and "; not run on a GPU" in table
    else:
        command = re.fullmatch(
            r"\n`python -m benchmarks\.speed\.\w+ [^`]*--device cuda[^`]*`: not run on a GPU\.\n", table
        )
        assert command or "NVIDIA" in table
    assert "|---|" in table or (device == "cuda" and "not run on a GPU" in table)
