"""Writing under a temporary name: complete, or not at all."""

import doctest

import pytest

from peft_listen import files
from peft_listen.files import atomic_path


def test_a_file_appears_when_it_is_complete(tmp_path):
    target = tmp_path / "scores.json"
    with atomic_path(target) as temporary:
        temporary.write_text("{}")
        assert not target.exists()
    assert target.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_appears_when_it_is_complete_and_may_replace_an_empty_one(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with atomic_path(target) as temporary:
        temporary.mkdir()
        (temporary / "config.json").write_text("{}")
    assert [path.name for path in target.iterdir()] == ["config.json"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_the_old_file(tmp_path, error):
    target = tmp_path / "scores.json"
    target.write_text("old")
    with pytest.raises(error), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_with_files_is_not_replaced(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "config.json").write_text("old")
    with pytest.raises(OSError), atomic_path(target) as temporary:
        temporary.mkdir()
    assert (target / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_the_example_holds():
    result = doctest.testmod(files)
    assert result.attempted > 0
    assert result.failed == 0
