"""
The hook of MkDocs that makes pages of the site from the repository's Markdown, whose links work on GitHub.

Some pages are outside of docs/, and are added to the site. A link to a file that is no page leads to GitHub. A link whose
text is the name of a file, such as "[use.md](use.md)", shows the page's title.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
# Pages of the site that are not in docs/, and their files.
INCLUDED = {
    "results.md": "benchmarks/RESULTS.md",
    "findings.md": "benchmarks/FINDINGS.md",
    "benchmarks.md": "benchmarks/README.md",
    "examples.md": "examples/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
LINK = re.compile(r"(!?)\[((?:`[^`]*`|[^\]`])*)\]\(([^)\s]+)\)")
CODE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)


def source_of(page: str) -> str:
    """The file in the repository of a page of the site."""
    return INCLUDED.get(page, f"docs/{page}")


def page_of(source: str) -> str | None:
    """The page of the site of a file in the repository; `None` if there is none."""
    for page, path in INCLUDED.items():
        if path == source:
            return page
    return source.removeprefix("docs/") if source.startswith("docs/") else None


def title_of(source: str) -> str:
    """The first heading of a page's file."""
    heading = re.search(r"^# (.+)$", (ROOT / source).read_text(encoding="utf-8"), flags=re.MULTILINE)
    if heading is None:
        raise ValueError(f"{source} has no title: it needs a line that begins with '# '.")
    return heading[1]


def images_of(source: str) -> list[str]:
    """The images in the repository that a file shows."""
    links = LINK.findall((ROOT / source).read_text(encoding="utf-8"))
    targets = [target for is_image, _, target in links if is_image and "://" not in target]
    return sorted({posixpath.normpath(posixpath.join(posixpath.dirname(source), target)) for target in targets})


def rewrite_links(markdown: str, page: str, repository: str) -> str:
    """
    Points the links of a page to the site.

    Args:
        markdown (`str`): content of the page.
        page (`str`): the page in the site, such as `"use.md"` or `"results.md"`.
        repository (`str`): address of the repository, without a slash at its end.

    Returns:
        `str`: the content, with links to pages of the site relative to `page`, and other links to the repository.
    """

    def replace(match: re.Match[str]) -> str:
        is_image, text, target = match.groups()
        path, hash_sign, anchor = target.partition("#")
        if not path or "://" in path or path.startswith("mailto:"):
            return match[0]
        source = posixpath.normpath(posixpath.join(posixpath.dirname(source_of(page)), path))
        there = source if is_image and not source.startswith("docs/") else page_of(source)
        if there is None:
            kind = "tree" if (ROOT / source).is_dir() else "blob"
            return f"[{text}]({repository}/{kind}/main/{source}{hash_sign}{anchor})"
        if source.endswith(".md") and text.strip("`").endswith(posixpath.basename(source)):
            text = title_of(source)
        relative = posixpath.relpath(there, posixpath.dirname(page) or ".")
        return f"{is_image}[{text}]({relative}{hash_sign}{anchor})"

    parts = CODE.split(markdown)
    return "".join(part if CODE.fullmatch(part) else LINK.sub(replace, part) for part in parts)


def on_files(files: Files, config: MkDocsConfig, **kwargs: Any) -> Files:
    """Adds the pages outside of docs/ and their images."""
    from mkdocs.structure.files import File

    for page, source in INCLUDED.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
        for image in images_of(source):
            if not image.startswith("docs/"):
                files.append(File.generated(config, image, abs_src_path=str(ROOT / image)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **kwargs: Any) -> str:
    """Rewrites the links of a page, and lets its edit button open the file in the repository."""
    repository = str(config.repo_url).rstrip("/")
    page.edit_url = f"{repository}/edit/main/{source_of(page.file.src_uri)}"
    return rewrite_links(markdown, page.file.src_uri, repository)
