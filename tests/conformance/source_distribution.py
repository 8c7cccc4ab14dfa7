"""The tests of an installed package, out of its source distribution, which is downloaded once."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path, PurePosixPath


# Within pytest's cache, where `pytest --cache-clear` finds it.
CACHE = Path(__file__).parents[2] / ".pytest_cache" / "d"
DOWNLOAD_SECONDS = 300


class TestsUnavailableError(Exception):
    """The package's tests cannot be had; the message says why."""


def obtain_tests(
    package: str, cache: Path = CACHE, version: str | None = None, pip_options: tuple[str, ...] = ()
) -> Path:
    """
    The folder with the tests of a package. It is complete or not there, and fetched once.

    Args:
        package: Name of the package on the index.
        cache: Folder to keep it in.
        version: Version of the package; defaults to the installed one.
        pip_options: Further options of `pip download`, e.g. another index.

    Raises:
        TestsUnavailableError: if pip cannot download the source distribution, or it holds no tests.
    """
    version = version or importlib.metadata.version(package)
    folder = cache / f"{package}-{version}-tests"
    if folder.is_dir():
        return folder
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as temporary:
        archive = _download(Path(temporary), package, version, pip_options)
        extracted = Path(temporary) / "tests"
        extract_tests(archive, extracted)
        try:
            os.replace(extracted, folder)
        except OSError:
            if not folder.is_dir():  # otherwise another process was faster
                raise
    return folder


def _download(folder: Path, package: str, version: str, pip_options: tuple[str, ...]) -> Path:
    requirement = f"{package}=={version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", package]
    command += [*pip_options, "--dest", str(folder), requirement]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise TestsUnavailableError(f"downloading the source distribution of {requirement} took too long") from error
    archives = list(folder.glob("*.tar.gz"))
    if result.returncode != 0 or not archives:
        errors = [line for line in result.stderr.splitlines() if line.startswith("ERROR")] or [result.stderr.strip()]
        raise TestsUnavailableError(f"pip cannot download the source distribution of {requirement}: {errors[-1]}")
    return archives[0]


def extract_tests(archive: Path, folder: Path) -> None:
    """
    Writes the Python files directly under `tests/` of a source distribution into a new folder, and nothing else: their
    names are all that is taken from the archive.

    Raises:
        TestsUnavailableError: if it holds none.
    """
    folder.mkdir()
    with tarfile.open(archive) as files:
        for member in files:
            path = PurePosixPath(member.name)
            if not member.isfile() or path.suffix != ".py" or len(path.parts) != 3 or path.parts[1] != "tests":
                continue
            content = files.extractfile(member)
            assert content is not None  # it is a file
            (folder / path.name).write_bytes(content.read())
    if not any(folder.iterdir()):
        raise TestsUnavailableError(f"{archive.name} holds no tests")
