"""What a release consists of: the checks of its packages, its version, its dependencies and its changelog."""

import ast
import importlib.util
import io
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from peft_listen import __version__
from tests.pages import ROOT


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def check():
    specification = importlib.util.spec_from_file_location("check_packages", ROOT / ".ci" / "check_packages.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture
def packages(check, tmp_path):
    """A wheel and a source distribution with the files that they should have, and others that a test adds or removes."""

    def write(without: str = "", added: str = "", version: str = __version__) -> Path:
        files = dict.fromkeys(check.files_of_the_sources() - {without} | ({added} if added else set()), b"")
        metadata = f"peft_listen-{__version__}.dist-info"
        files |= {f"{metadata}/{name}": b"" for name in ("entry_points.txt", "licenses/LICENSE", "RECORD")}
        files[f"{metadata}/METADATA"] = f"Metadata-Version: 2.4\nName: peft-listen\nVersion: {version}\n".encode()
        with zipfile.ZipFile(tmp_path / f"peft_listen-{__version__}-py3-none-any.whl", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        with tarfile.open(tmp_path / f"peft_listen-{__version__}.tar.gz", "w:gz") as archive:
            for name in {*check.SOURCES, *(f"src/{name}" for name in check.files_of_the_sources())} - {without}:
                archive.addfile(tarfile.TarInfo(f"peft_listen-{__version__}/{name}"), io.BytesIO())
        return tmp_path

    return write


def test_packages_with_all_files_have_no_problems(check, packages) -> None:
    folder = packages()
    assert check.problems_of(folder, tag=f"v{__version__}") == []
    assert {"peft_listen/py.typed", "peft_listen/analysis/report.html.jinja"} <= check.files_of_the_sources()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"without": "peft_listen/py.typed"}, "lacks peft_listen/py.typed"),
        ({"without": "peft_listen/analysis/report.html.jinja"}, "lacks peft_listen/analysis/report.html.jinja"),
        ({"added": "tests/test_docs.py"}, "installs tests/test_docs.py"),
        ({"added": "peft_listen/__pycache__/x.pyc"}, "installs peft_listen/__pycache__/x.pyc"),
        ({"version": "9.9"}, "has the version 9.9"),
        ({"without": "LICENSE"}, "lacks LICENSE"),
    ],
)
def test_a_problem_of_a_package_is_named(change, problem, check, packages) -> None:
    problems = check.problems_of(packages(**change))
    assert len(problems) == 1 and problem in problems[0]


def test_a_release_needs_both_packages_and_its_own_tag(check, packages, tmp_path) -> None:
    assert check.problems_of(packages(), tag="v9.9") == [
        f"the tag is v9.9, but _version.py says {__version__}: expected v{__version__}"
    ]
    (tmp_path / "empty").mkdir()
    command = [sys.executable, ROOT / ".ci" / "check_packages.py", tmp_path / "empty"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 1 and "0 wheels and 0 source distributions" in result.stderr


def test_the_version_is_in_one_place() -> None:
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["hatch"]["version"]["path"] == "src/peft_listen/_version.py"
    assigned = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "src").rglob("*.py")
        if re.search(r"^__version__ *=", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert assigned == ["src/peft_listen/_version.py"]


def test_the_changelog_has_the_version_with_notes_for_upgrades() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    release = re.match(r"\d+\.\d+\.\d+", __version__)[0]
    section = re.search(rf"^## {re.escape(release)}\b.*?(?=^## |\Z)", changelog, flags=re.MULTILINE | re.DOTALL)
    assert section, f"CHANGELOG.md has no section for {release}"
    assert "### Upgrade notes" in section[0]


# Modules whose names differ from those of their packages.
MODULES = {"rouge-score": "rouge_score", "scikit-learn": "sklearn"}
# Packages that these need themselves, and two that are used where they happen to be installed.
OF_DEPENDENCIES = {"deepspeed", "fastapi", "huggingface_hub", "markupsafe", "packaging", "tqdm", "umap", "yaml"}


def modules_of(requirements: list[str]) -> set[str]:
    names = [re.match(r"[\w-]+", requirement)[0] for requirement in requirements]
    return {MODULES.get(name, name) for name in names if name != "peft-listen"}


def imported_modules() -> set[str]:
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"peft_listen", "peft_listen_cli"}


def test_the_dependencies_are_what_the_sources_import() -> None:
    extras = PROJECT["project"]["optional-dependencies"]
    required = modules_of(PROJECT["project"]["dependencies"])
    optional = {name: modules_of(extras[name]) for name in ("audio", "train", "metrics", "analysis", "serve", "page")}
    imported = imported_modules()
    assert set().union(required, *optional.values()) == imported - OF_DEPENDENCIES
    assert not required & set().union(*optional.values())


IMPORT_TIME = """
import os, time
import torch, transformers, peft
for _ in range(5):
    if os.fork() == 0:
        start = time.process_time()
        import peft_listen
        print(time.process_time() - start, flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs processes that begin as copies")
def test_the_import_takes_little_longer_than_that_of_peft_and_transformers() -> None:
    # CPU time, the least of five, because other programs use the machine too. It is about 0.08 s.
    result = subprocess.run([sys.executable, "-c", IMPORT_TIME], capture_output=True, text=True, check=True)
    seconds = [float(line) for line in result.stdout.split()]
    assert len(seconds) == 5 and min(seconds) < 0.3
