"""Writing under a temporary name: complete, or not at all."""

import doctest
import os
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from peft_listen import files
from peft_listen.files import atomic_path, check_output_file, remove_abandoned, temporary_path, write_errors
from tests.device_nodes import make_null_device


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


class TestTheTarget:
    """Only a regular file, an empty folder or nothing may be replaced."""

    @pytest.fixture(params=["link to a file", "link to nothing", "link to a folder", "named pipe", "socket"])
    def special(self, request, tmp_path):
        path, other = tmp_path / "output", tmp_path / "other"
        if request.param == "named pipe":
            os.mkfifo(path)
        elif request.param == "socket":
            with socket.socket(socket.AF_UNIX) as server:
                server.bind(str(path))
        else:
            if request.param == "link to a file":
                other.write_text("other")
            elif request.param == "link to a folder":
                other.mkdir()
            path.symlink_to(other)
        return path

    @staticmethod
    def state(folder):
        return {path.name: (path.lstat().st_ino, path.lstat().st_mode) for path in folder.iterdir()}

    def test_a_special_file_is_refused_and_stays(self, special, tmp_path):
        before = self.state(tmp_path)
        message = (
            rf"{special} cannot be written: it is a (symbolic link to .*other|named pipe|socket).* Pass another path"
        )
        with pytest.raises(OSError, match=message), atomic_path(special):
            pytest.fail("the block must not run")
        with pytest.raises(OSError, match=message):
            check_output_file(special)
        assert self.state(tmp_path) == before

    def test_a_device_is_refused_and_stays(self, tmp_path):
        device = make_null_device(tmp_path / "device")
        with pytest.raises(OSError, match=f"{device} cannot be written: it is a character device"):
            with atomic_path(device):
                pytest.fail("the block must not run")
        assert stat.S_ISCHR(os.stat(device).st_mode)

    def test_a_link_that_appears_during_the_write_is_not_replaced(self, tmp_path):
        target = tmp_path / "page.html"
        with pytest.raises(OSError, match="symbolic link"), atomic_path(target) as temporary:
            temporary.write_text("page")
            target.symlink_to(tmp_path / "nothing")
        assert target.is_symlink()
        assert list(tmp_path.iterdir()) == [target]

    def test_a_folder_behind_a_link_may_be_written_to(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with atomic_path(tmp_path / "link" / "page.html") as temporary:
            temporary.write_text("page")
        assert (tmp_path / "real" / "page.html").read_text() == "page"

    def test_a_missing_parent_folder_is_named(self, tmp_path):
        for check in (check_output_file, lambda path: atomic_path(path).__enter__()):
            with pytest.raises(OSError, match=r"missing does not exist\. Create it first"):
                check(tmp_path / "missing" / "page.html")

    def test_a_folder_is_not_an_output_file(self, tmp_path):
        with pytest.raises(OSError, match="it is a folder"):
            check_output_file(tmp_path / ".")
        (tmp_path / "empty").mkdir()
        with pytest.raises(OSError, match="it is a folder"):
            check_output_file(tmp_path / "empty")

    @pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "你" * 85])
    def test_the_longest_names_can_be_written(self, tmp_path, name):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text("page")
        assert [path.name for path in tmp_path.iterdir()] == [name]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.modules["peft_listen"] = type(sys)("peft_listen")  # the package's own imports take seconds
sys.modules["peft_listen"].__path__ = [sys.argv[1]]
from peft_listen.files import atomic_path
with atomic_path(sys.argv[2]) as temporary:
    if sys.argv[3] == "folder":
        temporary.mkdir()
        (temporary / "part").write_text("half")
    else:
        temporary.write_text("half")
    if sys.argv[4] == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    print("writing", flush=True)
    sys.stdin.read()
"""


def start_writer(target, kind, end):
    command = [sys.executable, "-c", KILLED, str(Path(files.__file__).parent), str(target), kind, end]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


class TestAbandonedFiles:
    """Temporary files of writers that have ended are removed by the next write; all others stay."""

    @pytest.mark.parametrize("kind", ["file", "folder"])
    @pytest.mark.parametrize("later", ["scores.json", "other.json"])
    def test_the_rest_of_a_killed_writer_is_removed_by_the_next_write(self, tmp_path, kind, later):
        with start_writer(tmp_path / "scores.json", kind, "killed") as writer:
            assert writer.wait() == -signal.SIGKILL
        assert len(list(tmp_path.iterdir())) == 1
        with atomic_path(tmp_path / later) as temporary:
            temporary.write_text("{}")
        assert list(tmp_path.iterdir()) == [tmp_path / later]

    def test_the_file_of_a_live_writer_stays(self, tmp_path):
        with start_writer(tmp_path / "scores.json", "file", "alive") as writer:
            assert writer.stdout.readline() == b"writing\n"
            (part,) = tmp_path.iterdir()
            os.utime(part, (0, 0))
            remove_abandoned(tmp_path)
            with atomic_path(tmp_path / "other.json") as temporary:
                temporary.write_text("{}")
            assert part.exists()
            writer.stdin.close()
            assert writer.wait() == 0
        assert (tmp_path / "scores.json").read_text() == "half"

    def test_own_files_of_other_blocks_stay(self, tmp_path):
        with atomic_path(tmp_path / "a") as first, atomic_path(tmp_path / "b") as second:
            first.write_text("a")
            remove_abandoned(tmp_path)
            second.write_text("b")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]

    def test_a_file_of_an_earlier_process_with_the_same_id_is_removed(self, tmp_path):
        name = temporary_path(tmp_path / "a").name
        machine, pid, start, random = name.split(".")[2].split("-")
        reused = tmp_path / f".a.{machine}-{pid}-{int(start) - 3600}-{random}.tmp"
        reused.touch()
        remove_abandoned(tmp_path)
        assert not reused.exists()

    @pytest.mark.parametrize("writer", ["0123abcd-1-1700000000-89abcdef", "0" * 32])
    @pytest.mark.parametrize("hours", [1, 48])
    def test_files_of_unknown_writers_are_removed_after_a_day(self, tmp_path, writer, hours):
        path = tmp_path / f".scores.json.{writer}.tmp"
        path.mkdir()
        (path / "part").touch()
        for each in (path / "part", path):
            os.utime(each, (time.time() - hours * 3600,) * 2)
        remove_abandoned(tmp_path)
        assert path.exists() == (hours < 24)

    @pytest.mark.parametrize(
        "name",
        [
            "notes.tmp",
            ".notes.tmp",
            ".a.0123.tmp",
            f"a.{'0' * 32}.tmp",
            f".a.{'0' * 32}.tmp.bak",
            f".a.{'g' * 32}.tmp",
        ],
    )
    def test_files_of_others_stay(self, tmp_path, name):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (0, 0))
        remove_abandoned(tmp_path)
        assert (tmp_path / name).exists()

    def test_a_missing_folder_is_not_an_error(self, tmp_path):
        remove_abandoned(tmp_path / "missing")


@pytest.fixture
def small_disk():
    """Lets files grow to 20 kB only, as a disk that is full does."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def write_folder(path):
    path.mkdir()
    save_file({"weights": torch.zeros(10_000)}, path / "model.safetensors")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("x" * 40_000),
        lambda path: save_file({"weights": torch.zeros(10_000)}, path),
        lambda path: torch.save(torch.zeros(10_000), path),
        write_folder,
    ],
)
def test_a_full_disk_leaves_what_was_there_and_an_error_with_the_path(tmp_path, small_disk, write):
    target = tmp_path / "scores.json"
    if write is not write_folder:
        target.write_text("old")
    before = list(tmp_path.iterdir())
    with pytest.raises(OSError, match=r"scores\.json") as caught, atomic_path(target) as temporary:
        write(temporary)
    assert re.search("File too large|disk is full", str(caught.value))
    assert list(tmp_path.iterdir()) == before
    assert not before or target.read_text() == "old"


def test_other_errors_stay_as_they_are():
    with pytest.raises(RuntimeError, match="^no write$"), write_errors("file"):
        raise RuntimeError("no write")


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append("fsync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda *names: (events.append("replace"), replace(*names)))
    with atomic_path(tmp_path / "file") as temporary:
        temporary.write_text("{}")
    with atomic_path(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "a").touch()
        (temporary / "b").touch()
    assert events == ["fsync", "replace", "fsync", "fsync", "replace"]


def test_the_example_holds():
    result = doctest.testmod(files)
    assert result.attempted > 0
    assert result.failed == 0
