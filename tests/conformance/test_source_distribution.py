"""A package's tests are taken out of its source distribution whole, safely and once."""

import io
import subprocess
import tarfile

import pytest

from tests.conformance import source_distribution
from tests.conformance.source_distribution import TestsUnavailableError, extract_tests, obtain_tests


@pytest.fixture
def make_archive(tmp_path):
    def make_archive(members, name="package-1.0.tar.gz"):
        path = tmp_path / name
        with tarfile.open(path, "w:gz") as archive:
            for member, content in members.items():
                info = tarfile.TarInfo(member)
                if content is None:
                    info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
                    archive.addfile(info)
                    continue
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path

    return make_archive


def test_only_python_files_directly_under_tests_are_taken(make_archive, tmp_path):
    members = {
        "package-1.0/tests/test_one.py": b"one = 1",
        "package-1.0/tests/data.json": b"{}",
        "package-1.0/tests/deeper/test_two.py": b"two = 2",
        "package-1.0/src/three.py": b"three = 3",
        "package-1.0/tests/../../escaped.py": b"escaped",
        "/tmp/tests/absolute.py": b"absolute",
        "package-1.0/tests/link.py": None,
    }
    extract_tests(make_archive(members), tmp_path / "tests")
    assert {path.name: path.read_bytes() for path in (tmp_path / "tests").iterdir()} == {"test_one.py": b"one = 1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["package-1.0.tar.gz", "tests"]


def test_an_archive_without_tests_is_told(make_archive, tmp_path):
    with pytest.raises(TestsUnavailableError, match=r"package-1.0.tar.gz holds no tests"):
        extract_tests(make_archive({"package-1.0/src/module.py": b""}), tmp_path / "tests")


def test_an_index_that_cannot_be_reached_leaves_the_reason_and_nothing_else(tmp_path):
    with pytest.raises(TestsUnavailableError, match=r"pip cannot download .*peft==0.0.1: ERROR: .*peft==0.0.1"):
        obtain_tests("peft", cache=tmp_path, version="0.0.1", pip_options=("--no-index",))
    assert not list(tmp_path.iterdir())


def test_a_download_that_takes_too_long_is_given_up(tmp_path, monkeypatch):
    def run(command, **kwargs):
        raise subprocess.TimeoutExpired(command, kwargs["timeout"])

    monkeypatch.setattr(source_distribution.subprocess, "run", run)
    with pytest.raises(TestsUnavailableError, match=r"peft==0.0.1 took too long"):
        obtain_tests("peft", cache=tmp_path, version="0.0.1")
    assert not list(tmp_path.iterdir())


def test_tests_are_fetched_once(make_archive, tmp_path, monkeypatch):
    archive = make_archive({"package-1.0/tests/test_one.py": b""})
    downloads = []
    monkeypatch.setattr(source_distribution, "_download", lambda *arguments: downloads.append(arguments) or archive)
    first = obtain_tests("package", cache=tmp_path / "cache", version="1.0")
    assert obtain_tests("package", cache=tmp_path / "cache", version="1.0") == first
    assert len(downloads) == 1
    assert [path.name for path in first.iterdir()] == ["test_one.py"]
    assert list((tmp_path / "cache").iterdir()) == [first]  # nothing half-written beside it
