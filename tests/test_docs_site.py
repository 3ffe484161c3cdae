"""The documentation's site: builds without a warning, and asks no other host for anything."""

import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import BROWSER, needs_browser

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
pytest.importorskip("material", reason="the extra `docs` is not installed")
pytest.importorskip("mkdocstrings", reason="the extra `docs` is not installed")

ROOT = Path(__file__).parents[1]
# Attributes whose address a browser asks for by itself; of links, those that say so.
LOADED = {"src", "srcset", "poster", "data"}
LOADED_LINKS = {"stylesheet", "icon", "preload", "preconnect", "prefetch", "dns-prefetch"}
ELSEWHERE = re.compile(r"\s*(https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Built strictly: a link or an anchor that leads nowhere is an error."""
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    config.plugins.on_startup(command="build", dirty=False)
    try:
        build(config)
    finally:
        config.plugins.on_shutdown()
    return folder


class Loads(HTMLParser):
    """What a page makes the browser ask for."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        given = {name: value or "" for name, value in attributes}
        self.found += [value for name, value in given.items() if name in LOADED]
        if tag == "link" and LOADED_LINKS & set(given.get("rel", "").split()):
            self.found.append(given["href"])


def test_no_page_loads_anything_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = Loads(page.read_text(encoding="utf-8")).found
        assert loaded
        assert not [each for each in loaded if ELSEWHERE.match(each)], page
        assert 'class="mermaid"' not in page.read_text(encoding="utf-8")  # from another host
    for style in site.rglob("*.css"):
        asked = re.findall(
            r"(?:url\(|@import)\s*[\"']?([^\"')]+)", style.read_text(encoding="utf-8")
        )
        assert not [each for each in asked if ELSEWHERE.match(each)], style


def test_what_would_be_loaded_is_found():
    page = Loads(
        "<script src=//a.b/c.js></script><link rel='x stylesheet' href=https://a.b/c.css>"
        "<a href=https://a.b>text</a><img src=d.png>"
    )
    assert page.found == ["//a.b/c.js", "https://a.b/c.css", "d.png"]
    assert [bool(ELSEWHERE.match(each)) for each in page.found] == [True, True, False]


def test_source_files_have_pages(site):
    page = (site / "concepts.html").read_text(encoding="utf-8")
    assert 'href="source/lightning_ript/ppo.py.html"' in page
    source = (site / "source/lightning_ript/ppo.py.html").read_text(encoding="utf-8")
    assert "clipped_surrogate" in source


def test_the_reference_has_the_docstrings(site):
    page = (site / "reference/policies.html").read_text(encoding="utf-8")
    assert "Decides for B environments at once, without gradients." in page
    callbacks = (site / "reference/callbacks.html").read_text(encoding="utf-8")
    assert 'id="lightning_ript.callbacks.RollBack"' in callbacks
    assert 'RollBack.on_train_epoch_end"' not in callbacks  # Lightning's hooks are left out


@needs_browser
def test_the_search_needs_neither_a_server_nor_a_network(site, tmp_path):
    quiet = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom")
    shown = subprocess.run(
        [
            *(BROWSER, *quiet, f"--user-data-dir={tmp_path}"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", "--virtual-time-budget=20000"),
            f"{(site / 'index.html').as_uri()}?q=advantage",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout.count("md-search-result__item") > 1
