"""
Checks what the packages of a release contain. Needs nothing but Python.

    python .ci/check_packages.py FOLDER [--tag v0.1.0]
"""

import argparse
import re
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path


ROOT = Path(__file__).parent.parent
PACKAGES = ("peft_listen", "peft_listen_cli")
# What a source distribution needs so that others can build, test and read it.
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "src/peft_listen/py.typed", "tests/test_docs.py")
MAX_SDIST_BYTES = 16 * 1024**2


def version_of_the_sources() -> str:
    text = (ROOT / "src/peft_listen/_version.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"$', text, flags=re.MULTILINE)[1]  # type: ignore[index]


def files_of_the_sources() -> set[str]:
    """The files that a wheel installs: all of both packages, with their templates, data and `py.typed`."""
    files = (path for package in PACKAGES for path in (ROOT / "src" / package).rglob("*") if path.is_file())
    return {path.relative_to(ROOT / "src").as_posix() for path in files if "__pycache__" not in path.parts}


def wheel_problems(wheel: Path, version: str) -> list[str]:
    """What is wrong with a wheel: missing and additional files, version, entry point."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = f"peft_listen-{version}.dist-info"
        if f"{metadata}/METADATA" not in names:
            return [f"{wheel.name} has no {metadata}/METADATA, so it is not version {version}"]
        header = Parser().parsestr(archive.read(f"{metadata}/METADATA").decode())
    installed = {name for name in names if not name.startswith(f"{metadata}/")}
    problems = [f"{wheel.name} lacks {name}" for name in sorted(files_of_the_sources() - installed)]
    problems += [f"{wheel.name} installs {name}" for name in sorted(installed - files_of_the_sources())]
    if header["Version"] != version:
        problems.append(f"{wheel.name} has the version {header['Version']}, but _version.py says {version}")
    for name in ("entry_points.txt", "licenses/LICENSE"):
        if f"{metadata}/{name}" not in names:
            problems.append(f"{wheel.name} lacks {name}")
    return problems


def sdist_problems(sdist: Path, version: str) -> list[str]:
    """What is wrong with a source distribution: missing files, version, size."""
    with tarfile.open(sdist) as archive:
        names = set(archive.getnames())
    problems = [
        f"{sdist.name} lacks {name}"
        for name in (*SOURCES, *(f"src/{name}" for name in sorted(files_of_the_sources())))
        if f"peft_listen-{version}/{name}" not in names
    ]
    if sdist.stat().st_size > MAX_SDIST_BYTES:
        problems.append(f"{sdist.name} has {sdist.stat().st_size} bytes, more than {MAX_SDIST_BYTES}")
    return problems


def problems_of(folder: Path, tag: str | None = None) -> list[str]:
    """What is wrong with the packages in a folder, and with the tag of their release."""
    version = version_of_the_sources()
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    problems = []
    if len(wheels) != 1 or len(sdists) != 1:
        problems.append(
            f"{folder} has {len(wheels)} wheels and {len(sdists)} source distributions, expected one of each"
        )
    if tag is not None and tag != f"v{version}":
        problems.append(f"the tag is {tag}, but _version.py says {version}: expected v{version}")
    for wheel in wheels:
        problems += wheel_problems(wheel, version)
    for sdist in sdists:
        problems += sdist_problems(sdist, version)
    return problems


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument("folder", type=Path, help="with a wheel and a source distribution")
    parser.add_argument("--tag", help="tag of the release")
    arguments = parser.parse_args()
    sys.exit("\n".join(problems_of(arguments.folder, arguments.tag)) or 0)
