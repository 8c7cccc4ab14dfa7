"""The extension of griffe that converts the docstrings of the package, when all of it is loaded."""

from typing import Any

import griffe

from website import PACKAGES
from website.docstrings import to_markdown


def public_paths(package: griffe.Module) -> dict[str, str]:
    """From the last parts of each public name and public method to the path under which it is documented."""
    paths: dict[str, str] = {}
    documented: set[str] = set()
    for path in PACKAGES:
        module = package if path == package.path else package[path.removeprefix(f"{package.path}.")]
        for name in map(str, module.exports or ()):
            member = module[name]
            if member.canonical_path in documented:
                continue
            documented.add(member.canonical_path)
            paths[member.canonical_path] = paths.setdefault(name, f"{path}.{name}")
            paths[f"{path}.{name}"] = f"{path}.{name}"
            if member.is_class:
                for method in member.members.values():
                    if method.is_function and not method.name.startswith("_") and method.docstring:
                        paths[f"{name}.{method.name}"] = f"{path}.{name}.{method.name}"
                        paths[f"{path}.{name}.{method.name}"] = f"{path}.{name}.{method.name}"
    return paths


class HuggingFaceDocstrings(griffe.Extension):
    """Converts every docstring, and resolves its references: first in the class that it stands in, then among all names."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        if pkg.path == PACKAGES[0]:
            self._convert(pkg, public_paths(pkg))

    def _convert(self, node: griffe.Object, paths: dict[str, str]) -> None:
        def resolve(name: str) -> str | None:
            owner = node if node.is_class else node.parent
            return (paths.get(f"{owner.name}.{name}") if owner and owner.is_class else None) or paths.get(name)

        if node.docstring:
            node.docstring.value = to_markdown(node.docstring.value, resolve)
        for member in node.members.values():
            if not member.is_alias:
                self._convert(member, paths)
