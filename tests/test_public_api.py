"""What the package promises as a whole: its names, its imports, its line of dependence."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Collection
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
    "starlette",
    "uvicorn",
    "openai",
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
        "add_lora",
        "available_selectors",
        "get_selector",
        "load_audio",
        "load_with_lora",
        "prompt_embeds",
        "publish",
        "record_selections",
        "register_selector",
        "save_complete_model",
        "set_prompt_length",
        "use_prompt_length",
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


def module_of(path: Path) -> str:
    """Dotted name of the module in a source file."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in sorted(SOURCE.rglob("*.py"))}


def imports_of(path: Path, names: Collection[str] = tuple(FILES)) -> set[str]:
    """
    The modules of this package that a file imports, wherever in the file, for type checkers too. `from package import
    module` is an import of the module; `from package import name` is one of the package.
    """
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            found.update(f"{base}.{alias.name}" if f"{base}.{alias.name}" in names else base for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
    return {name for name in found if name in names} - {module}


def lazy_imports_are_allowed(module: str) -> bool:
    """These import late what stands above them: the public names, and the registries of other libraries."""
    return module in ("peft_listen", "peft_listen.registration")


def find_cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """The modules of one import cycle, the first again at the end; `None` if there is no cycle."""
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str] | None:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in finished:
            return None
        for imported in sorted(graph[module]):
            cycle = visit(imported, [*path, module])
            if cycle:
                return cycle
        finished.add(module)
        return None

    return next((cycle for module in sorted(graph) if (cycle := visit(module, []))), None)


def test_cycles_are_found() -> None:
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": set()}) is None
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


def test_no_import_cycle() -> None:
    graph = {name: imports_of(path) for name, path in FILES.items() if not lazy_imports_are_allowed(name)}
    graph = {name: {each for each in imported if each in graph} for name, imported in graph.items()}
    cycle = find_cycle(graph)
    assert cycle is None, "import cycle: " + " -> ".join(cycle or [])


@pytest.mark.parametrize(
    ("package", "forbidden"),
    [
        ("audio", ("tuners", "models", "training", "data", "metrics", "analysis", "pipelines", "evaluation", "runs")),
        ("tuners", ("audio", "models", "training", "data", "metrics", "analysis", "pipelines", "evaluation", "runs")),
        ("models", ("tuners", "training", "data", "metrics", "analysis", "pipelines", "evaluation", "runs")),
        ("data", ("tuners", "training", "metrics", "analysis", "pipelines", "evaluation", "runs")),
        ("metrics", ("audio", "tuners", "models", "training", "data", "analysis", "pipelines", "evaluation", "runs")),
        ("analysis", ("models", "training", "data", "pipelines", "evaluation", "runs")),
        ("training", ("metrics", "pipelines", "evaluation", "runs")),
        ("evaluation", ("tuners", "models", "training", "analysis", "pipelines", "runs")),
        ("pipelines", ("tuners", "training", "metrics", "analysis", "evaluation", "runs")),
        ("serving", ("training", "data", "metrics", "analysis", "evaluation", "runs")),
        ("page", ("models", "training", "metrics", "evaluation", "runs")),
    ],
)
def test_imports_run_one_way(package: str, forbidden: tuple[str, ...]) -> None:
    inside = {name: path for name, path in FILES.items() if f"{name}.".startswith(f"peft_listen.{package}.")}
    assert inside
    for path in inside.values():
        for name in imports_of(path) - {"peft_listen"}:
            assert name.split(".")[1] not in forbidden, f"{path.relative_to(SOURCE)} imports {name}"


def test_nothing_imports_the_command_the_page_or_the_server() -> None:
    for name, path in FILES.items():
        assert not any(imported.startswith("peft_listen_cli") for imported in imports_of(path)), path
        if not f"{name}.".startswith("peft_listen.page."):
            assert not any(imported.startswith("peft_listen.page") for imported in imports_of(path)), path
            # The page uses the server's models, and runs as it does.
            if not f"{name}.".startswith("peft_listen.serving."):
                assert not any(imported.startswith("peft_listen.serving") for imported in imports_of(path)), path


def public_exports() -> dict[str, set[str]]:
    """For each class and function of this package that a package exports, the names under which it is exported."""
    exports: dict[str, set[str]] = {}
    for name in FILES:
        module = importlib.import_module(name)
        for public in getattr(module, "__all__", ()):
            value = getattr(module, public)
            if str(getattr(value, "__module__", "")).startswith("peft_listen") and hasattr(value, "__qualname__"):
                exports.setdefault(f"{value.__module__}.{value.__qualname__}", set()).add(public)
    return exports


def test_no_definition_has_two_public_names() -> None:
    for definition, names in public_exports().items():
        assert names == {definition.rpartition(".")[2]}, f"{definition} is exported as {sorted(names)}"


def test_no_public_name_has_two_definitions() -> None:
    definitions: dict[str, str] = {}
    for definition, (name, *_) in public_exports().items():
        assert definitions.setdefault(name, definition) == definition, f"{name} is two definitions"
