"""Gives the site a page of each file and folder outside docs/ that its pages link to.

In a clone, and where a clone is shown, such a link opens the file itself. The site has to bring
what it shows, because its pages ask no other host for anything.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)[^)#\s]+")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".sbatch": "bash"}
NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"
FENCE = "~" * 8


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages, below `source/`."""
    texts = {f"docs/{page.src_uri}": page.content_string for page in files.documentation_pages()}
    wanted = {target for place, text in texts.items() for target in _targets(text, place)}
    found: set[str] = set()
    while wanted:
        target = wanted.pop()
        if target in found or target.startswith("docs/"):
            continue
        found.add(target)
        text = _text(target)
        wanted.update(_targets(text, target))
        files.append(File.generated(config, _page_of(target), content=NOT_SEARCHED + text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads links to those pages, and theirs to where the files lie."""
    here = page.file.src_uri
    place = here.removeprefix("source/").removesuffix(".md") if _is_added(here) else f"docs/{here}"

    def lead(match: re.Match[str]) -> str:
        target = _target(match[0], place)
        if target is None:
            return match[0]
        return posixpath.relpath(_page_of(target), posixpath.dirname(here) or ".")

    return LINK.sub(lead, markdown)


def _is_added(page: str) -> bool:
    return page.startswith("source/")


def _page_of(target: str) -> str:
    """The page, or the picture, of a place in the repository."""
    return target.removeprefix("docs/") if target.startswith("docs/") else f"source/{target}.md"


def _targets(text: str, place: str) -> Iterator[str]:
    """Where the links of a text lead, from the repository's root."""
    for match in LINK.finditer(text):
        target = _target(match[0], place)
        if target is not None:
            yield target


def _target(link: str, place: str) -> str | None:
    """Where a link leads from a file; None if nothing is there, as where code looks like a link."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(place), link))
    return target if not target.startswith("..") and (ROOT / target).exists() else None


def _text(target: str) -> str:
    """What the page of a file or folder says."""
    path = ROOT / target
    if path.is_dir():
        inside = sorted(each for each in path.rglob("*") if each.suffix in LANGUAGES)
        lines = [
            f"- [{each.relative_to(path)}]({each.relative_to(path.parent)})\n" for each in inside
        ]
        return f"# {target}\n\n{''.join(lines)}"
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    language = LANGUAGES.get(PurePosixPath(target).suffix, "text")
    code = path.read_text(encoding="utf-8")
    return f"# {target}\n\n{FENCE}{language}\n{code}\n{FENCE}\n"
