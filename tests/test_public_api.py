"""What the package promises as a whole: its names, its imports, its line of dependence."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import peft_listen


SOURCE = Path(peft_listen.__file__).parent
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(SOURCE)], "peft_listen."))
OPTIONAL = (
    "trl",
    "datasets",
    "evaluate",
    "jiwer",
    "sacrebleu",
    "rouge_score",
    "sklearn",
    "umap",
    "matplotlib",
    "gradio",
    "vllm",
    "librosa",
)


def test_the_public_names_are_these() -> None:
    assert peft_listen.__all__ == [
        "AudioListenConfig",
        "AudioListenForCausalLM",
        "AudioListenModel",
        "AudioListenProcessor",
        "AudioTextToTextPipeline",
        "BeatsConfig",
        "BeatsFeatureExtractor",
        "BeatsForAudioClassification",
        "BeatsModel",
        "ListenConfig",
        "ListenModel",
        "Selection",
        "SelectionRecord",
        "Selector",
        "WindowQFormerProjector",
        "available_selectors",
        "get_selector",
        "load_audio",
        "register_selector",
    ]
    for name in peft_listen.__all__:
        assert getattr(peft_listen, name).__doc__, f"{name} has no docstring"


@pytest.mark.parametrize("name", MODULES)
def test_every_module_can_be_imported(name: str) -> None:
    importlib.import_module(name)


def test_importing_the_package_imports_no_optional_dependency() -> None:
    # transformers imports some of them itself where they are installed, so they are made to be absent.
    absent = dict.fromkeys((*OPTIONAL, "soundfile", "soxr"))
    code = f"import sys; sys.modules.update({absent!r}); import peft_listen"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SOURCE.parent)


def imports_of(path: Path) -> set[str]:
    """The first two parts of every `peft_listen` module that a file imports, relative ones resolved."""
    package = ["peft_listen", *path.relative_to(SOURCE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*base, *(node.module or "").split(".")]))
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name.startswith("peft_listen.")}


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("tuners", ("models", "training", "data", "metrics", "analysis", "pipelines", "cli")),
        ("models", ("tuners", "training", "data", "metrics", "analysis", "pipelines", "cli")),
        ("data", ("tuners", "training", "metrics", "analysis", "pipelines", "cli")),
        ("metrics", ("tuners", "models", "training", "data", "analysis", "pipelines", "cli")),
        ("analysis", ("models", "training", "data", "metrics", "pipelines", "cli")),
        ("training", ("metrics", "pipelines", "cli")),
        ("pipelines", ("tuners", "training", "metrics", "analysis", "cli")),
    ],
)
def test_imports_run_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    for path in (SOURCE / package).rglob("*.py"):
        for name in imports_of(path):
            assert name.split(".")[1] not in forbidden, f"{path.relative_to(SOURCE)} imports {name}"
