"""Stages of the demo: commands whose output is reused only for the same arguments.

The output of a stage is a folder whose name ends in a hash of everything that the output depends on: the stage's settings,
its code, the versions of the libraries, and the same of the stages that it builds on. Other settings have another folder.
`stage.json` in the folder lists all this. It is written last, so a folder without it is incomplete.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from peft_listen.files import atomic_path


MANIFEST = "stage.json"
PACKAGES = ("peft-listen", "peft", "torch", "transformers")


@dataclass(frozen=True)
class Input:
    """
    What a stage reads.

    Attributes:
        path (`Path`): its file or folder.
        manifest (`dict`): everything that its content depends on, as JSON values.
    """

    path: Path
    manifest: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """
    A command, `python -m MODULE INPUT... OUTPUT --SETTING VALUE...`, and the folder of its output.

    Attributes:
        title (`str`): title that is printed.
        parent (`Path`): folder in which the folder of the output is created.
        name (`str`): beginning of the folder's name.
        module (`str`): module to run.
        inputs (`tuple[Input, ...]`): what the command reads; their paths are its first arguments.
        settings (`Mapping[str, Any]`):
            options of the command by name. `True` is an option without a value; `None` and `False` are left out. Files and
            folders are identified by path, sizes and times of their files.
        caches (`Mapping[str, Path]`): options with folders that other stages share, which do not change the output.
        products (`tuple[str, ...]`): files, relative to the output's folder, that exist after the command has succeeded.
        target (`str`, defaults to `"."`): output to pass to the command, relative to the output's folder.
        imports (`tuple[str, ...]`): further modules whose code determines the output.
        resumes (`bool`, defaults to `False`):
            whether the command completes what it left when it was interrupted. Otherwise an incomplete folder is removed.
    """

    title: str
    parent: Path
    name: str
    module: str
    inputs: tuple[Input, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    caches: Mapping[str, Path] = field(default_factory=dict)
    products: tuple[str, ...] = ()
    target: str = "."
    imports: tuple[str, ...] = ()
    resumes: bool = False

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """Everything that the output depends on, with the manifests of the inputs."""
        return {
            "module": self.module,
            "settings": {name: _describe(value) for name, value in self.settings.items()},
            "code_sha256": _code_hash(self.module, *self.imports),
            "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
            "inputs": [each.manifest for each in self.inputs],
        }

    @cached_property
    def output(self) -> Path:
        """Folder of the output."""
        canonical = json.dumps(self.manifest, sort_keys=True).encode()
        return self.parent / f"{self.name}-{hashlib.sha256(canonical).hexdigest()[:10]}"

    def product(self, path: str = ".") -> Input:
        """A file or folder of the output, relative to the output's folder, as the input of another stage."""
        return Input(self.output / path, self.manifest)

    @property
    def is_complete(self) -> bool:
        """Whether the command has succeeded with these settings and inputs, and its products exist."""
        try:
            found = json.loads((self.output / MANIFEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return found == self.manifest and all((self.output / path).is_file() for path in self.products)

    def run(self) -> None:
        """
        Runs the command in a new process, unless the output is complete.

        Raises:
            RuntimeError: if the command succeeds without its products.
            subprocess.CalledProcessError: if the command fails.
        """
        print(f"\n== {self.title}")
        for former in (self.parent / self.name, self.parent / f"{self.name}.json"):
            if former.exists():
                print(f"{former} was made by an earlier version of the demo and is not used. You can remove it.")
        if self.is_complete:
            print(f"reusing {self.output}, made with the same arguments")
            return
        if self.output.exists():
            print(f"{self.output} is incomplete and is {'completed' if self.resumes else 'made again'}")
            if not self.resumes:
                shutil.rmtree(self.output)
        self.output.mkdir(parents=True, exist_ok=True)
        options: list[object] = []
        for name, value in {**self.settings, **self.caches}.items():
            if value is not None and value is not False:
                options += [f"--{name.replace('_', '-')}", *([] if value is True else [value])]
        execute(self.module, *(each.path for each in self.inputs), self.output / self.target, *options)
        missing = [path for path in self.products if not (self.output / path).is_file()]
        if missing:
            raise RuntimeError(f"{self.module} ended without writing {', '.join(missing)} to {self.output}.")
        with atomic_path(self.output / MANIFEST) as temporary:
            temporary.write_text(json.dumps(self.manifest, indent=1) + "\n", encoding="utf-8")


def execute(module: str, *arguments: object) -> None:
    """
    Prints the command that runs a module, and runs it in a new process.

    Args:
        module (`str`): module to run.
        arguments: its command-line arguments.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    command = ["-m", module, *map(str, arguments)]
    print(f"$ python {shlex.join(command)}", flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, *command], check=True)
    print(f"({time.perf_counter() - start:.0f} s)", flush=True)


def _describe(value: Any) -> Any:
    """A setting as a JSON value. A model that was changed in place is another one."""
    if not isinstance(value, str | Path) or not Path(value).exists():
        return str(value) if isinstance(value, Path) else value
    path = Path(value).resolve()
    files = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    states = [(each.relative_to(path.parent).as_posix(), each.stat()) for each in files]
    content = json.dumps([(name, state.st_size, state.st_mtime_ns) for name, state in states])
    return {"path": str(path), "files_sha256": hashlib.sha256(content.encode()).hexdigest()}


def _code_hash(*modules: str) -> str:
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError(f"There is no module {module!r}. Run the demo from the root of the repository.")
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()
