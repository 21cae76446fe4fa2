"""The documentation site: it builds without warnings, loads nothing external, and fits a desk and a hand."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.paths import ROOT
from tests.support.browsing import CHROMIUM, SIZES_AND_THEMES, Theme, launch_browser, open_page
from tests.support.doc_blocks import pages
from tests.support.waiting import LONG_PATIENCE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("sphinx", "myst_parser", "furo", "sphinx_llm"))),
        reason="Sphinx is not installed: pip install 'rank-k[docs]'",
    ),
]

SAMPLE = ("index", "start", "concepts/glossary", "reference/commands/rerank", "reference/options", "architecture")
"""Pages that are also opened with the other theme of each size."""

PAGES = [page.removeprefix("docs/").removesuffix(".md") for page in pages(["docs"])]
EXTERNAL_SOURCE = re.compile(r'<(?:script|link|img|iframe)\b[^>]*\b(?:src|href)="(?:https?:)?//[^"]*"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the site, built as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--quiet", "docs", str(folder)]
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONG_PATIENCE)
    assert completed.returncode == 0, completed.stderr
    return folder


@pytest.fixture(scope="module")
def site_url(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    with launch_browser() as started:
        yield started


def test_make_docs_builds_as_this_test_does() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "-m sphinx --fail-on-warning --keep-going --quiet docs docs/_build" in makefile


def test_every_page_has_html_and_markdown(site: Path) -> None:
    assert "index" in PAGES
    missing = [name for page in PAGES for name in (f"{page}.html", f"{page}.html.md") if not (site / name).is_file()]
    assert missing == []


def test_markdown_version_has_the_generated_parts(site: Path) -> None:
    rerank = (site / "reference" / "commands" / "rerank.html.md").read_text(encoding="utf-8")
    assert "--first-stage-weight" in rerank
    assert "{command}" not in rerank
    assert "/v2/rerank" in (site / "reference" / "http-api.html.md").read_text(encoding="utf-8")
    assert "max_seconds" in (site / "reference" / "options.html.md").read_text(encoding="utf-8")
    assert "arank" in (site / "reference" / "python-api.html.md").read_text(encoding="utf-8")


def test_llms_txt_links_every_page(site: Path) -> None:
    text = (site / "llms.txt").read_text(encoding="utf-8")
    assert text.startswith("# Rank-K\n")
    linked = set(re.findall(r"\]\(([^)#]+)\)", text))
    assert linked == {f"{page}.html.md" for page in PAGES}


def test_pages_load_nothing_external(site: Path) -> None:
    external = {
        (path.relative_to(site).as_posix(), match[0])
        for path in site.rglob("*.html")
        for match in EXTERNAL_SOURCE.finditer(path.read_text(encoding="utf-8"))
    }
    assert external == set()
    styles = [path for path in site.rglob("*.css") if re.search(r"url\([\"']?(?:https?:)?//", path.read_text("utf-8"))]
    assert styles == []


@pytest.mark.browser
@pytest.mark.parametrize(("size", "theme"), SIZES_AND_THEMES)
def test_pages_fit_and_log_no_error(browser: Browser, site_url: str, size: str, theme: Theme) -> None:
    opens_all_pages = (size, theme) in (("desk", "light"), ("hand", "dark"))
    for page in PAGES if opens_all_pages else SAMPLE:
        with open_page(browser, f"{site_url}/{page}.html", size, theme) as opened:
            page_width, window_width = opened.evaluate("[document.documentElement.scrollWidth, innerWidth]")
            assert page_width <= window_width, f"{page} scrolls sideways: {page_width} px"
            background = opened.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (background != "rgb(255, 255, 255)") == (theme == "dark"), page


@pytest.mark.browser
def test_search_finds_a_page(browser: Browser, site_url: str) -> None:
    with open_page(browser, f"{site_url}/search.html?q=journal") as page:
        page.wait_for_selector("#search-results a[href*='journal-schema']")
