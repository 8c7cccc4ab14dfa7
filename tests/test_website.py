"""The site of the documentation: its pages, its links, and the docstrings in it. `make docs` builds it."""

import ast
import importlib
import re
import tomllib

import pytest
import yaml

from tests.pages import ROOT
from website import PACKAGES
from website.docstrings import ENTRIES, entries_of, sections_of, to_markdown
from website.pages import INCLUDED, images_of, page_of, rewrite_links, title_of


SETTINGS = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
REPOSITORY = "https://github.com/peft-listen/peft-listen"


def pages_of(nav) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


# ------------------------------------------------------------------------------------------------------------- pages


def test_the_navigation_lists_every_page_once() -> None:
    files = [path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")]
    assert sorted(pages_of(SETTINGS["nav"])) == sorted([*files, *INCLUDED])


def test_the_pages_from_outside_of_docs_exist() -> None:
    for page, source in INCLUDED.items():
        assert title_of(source), page
        for image in images_of(source):
            assert (ROOT / image).is_file(), image


def test_the_site_has_the_address_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert SETTINGS["site_url"] == project["urls"]["Documentation"]
    assert SETTINGS["repo_url"] == project["urls"]["Repository"] == REPOSITORY
    assert SETTINGS["site_url"] in (ROOT / "README.md").read_text(encoding="utf-8")
    assert SETTINGS["strict"] is True


def public_names() -> list[str]:
    """The public names, each under the first package that exports it."""
    names, seen = [], set()
    for package in PACKAGES:
        module = importlib.import_module(package)
        for name in module.__all__:
            value = getattr(module, name)
            # Constants and unions of types have no module and name of their own.
            definition = (getattr(value, "__module__", package), getattr(value, "__qualname__", name))
            if definition not in seen:
                seen.add(definition)
                names.append(f"{package}.{name}")
    return names


def test_the_reference_has_every_public_name_once() -> None:
    shown = [
        name
        for path in (ROOT / "docs/api").glob("*.md")
        for name in re.findall(r"^::: (\S+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    ]
    assert sorted(shown) == sorted(public_names())


# ------------------------------------------------------------------------------------------------------------- links


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("use.md", "[use](train.md#data)", "[use](train.md#data)"),
        ("use.md", "[train.md](train.md#data)", "[Training](train.md#data)"),
        (
            "index.md",
            "[benchmarks/RESULTS.md](../benchmarks/RESULTS.md)",
            f"[{title_of('benchmarks/RESULTS.md')}](results.md)",
        ),
        ("api/data.md", "[recipes](../data.md)", "[recipes](../data.md)"),
        (
            "use.md",
            "[script](../examples/text_adapter.py)",
            f"[script]({REPOSITORY}/blob/main/examples/text_adapter.py)",
        ),
        ("use.md", "[runs](../benchmarks/speed/h100)", f"[runs]({REPOSITORY}/tree/main/benchmarks/speed/h100)"),
        ("findings.md", "[method](../docs/method.md#options)", "[method](method.md#options)"),
        ("findings.md", "[one](README.md#mini_listen)", "[one](benchmarks.md#mini_listen)"),
        ("changelog.md", "[data](docs/data.md)", "[data](data.md)"),
        ("method.md", "![figure](images/method.svg)", "![figure](images/method.svg)"),
        ("results.md", "![plot](mini_listen/plots/a.png)", "![plot](benchmarks/mini_listen/plots/a.png)"),
        ("use.md", "[`a[0]`](#anchor)", "[`a[0]`](#anchor)"),
        ("use.md", "[paper](https://arxiv.org/abs/2505.18517)", "[paper](https://arxiv.org/abs/2505.18517)"),
        ("use.md", "```python\nx = [f](train.md)\n```", "```python\nx = [f](train.md)\n```"),
    ],
)
def test_a_link_leads_to_the_page_of_the_site_or_to_the_repository(page, link, expected) -> None:
    assert rewrite_links(link, page, REPOSITORY) == expected


def test_a_page_of_the_site_is_found_by_its_file() -> None:
    assert page_of("docs/use.md") == "use.md"
    assert page_of("CHANGELOG.md") == "changelog.md"
    assert page_of("examples/text_adapter.py") is None


def test_a_page_without_a_title_is_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("website.pages.ROOT", tmp_path)
    (tmp_path / "page.md").write_text("no title")
    with pytest.raises(ValueError, match=r"page\.md has no title"):
        title_of("page.md")


# -------------------------------------------------------------------------------------------------------- docstrings


DOCSTRING = """
First line, see [`Other`] and [`~package.module.Known.method`].

Args:
    first (`int`, *optional*, defaults to `(1, 2)`): text.
    second, third_one (`dict[str, int]` or [`Known`], *optional*):
        more text
        - a point
        - and another
    **kwargs: passed on.
    fourth (`int`), fifth (`str`)

Returns:
    `list[int]`: what it says.

Raises:
    `ValueError`: for this.
    OSError: for that.

Example:

```python
print([`Known`])
```
"""
MARKDOWN = """First line, see `Other` and [`method`][public.Known.method].

**Parameters**

- **first** (`int`, *optional*, defaults to `(1, 2)`): text.

- **second, third\\_one** (`dict[str, int]` or [`Known`][public.Known], *optional*): more text

    - a point
    - and another

- **\\*\\*kwargs**: passed on.

- **fourth** (`int`), **fifth** (`str`)

**Returns**

`list[int]`: what it says.

**Raises**

- **ValueError**: for this.

- **OSError**: for that.

**Example**

```python
print([`Known`])
```"""


def test_a_docstring_becomes_markdown() -> None:
    known = {"Known": "public.Known", "package.module.Known.method": "public.Known.method"}
    assert to_markdown(DOCSTRING.strip(), known.get) == MARKDOWN


def docstrings() -> dict[str, str]:
    found = {}
    for path in sorted((ROOT / "src/peft_listen").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and (docstring := ast.get_docstring(node)):
                found[f"{path.relative_to(ROOT)}:{node.lineno}"] = docstring
    return found


def test_the_entries_of_every_docstring_are_understood() -> None:
    count = 0
    for place, docstring in docstrings().items():
        for header, content in sections_of(docstring):
            if header in ENTRIES:
                assert entries_of(content), f"{place}: {header}"
                count += 1
    assert count > 500
