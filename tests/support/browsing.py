"""A real browser at a server's pages: every size and theme, and nothing may be amiss in any of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.support.waiting import PATIENCE

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

expect.set_options(timeout=1000 * PATIENCE)

SIZES = {"desk": (1280, 900), "hand": (390, 844)}
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")
SIZES_AND_THEMES = [(size, theme) for size in SIZES for theme in THEMES]

WIDER_THAN_THE_PAGE = """() => [...document.querySelectorAll("body *")].filter(element => {
  if (!element.checkVisibility() || element.closest(".scroll, svg, .skip, .unseen")) return false;
  const box = element.getBoundingClientRect();
  return box.right > innerWidth + 1 || box.left < -1;
}).map(element => element.outerHTML.slice(0, 120))"""

CLIPPED_LABELS = """() => [...document.querySelectorAll("main button, main .button, main select, main label")]
  .filter(element => element.checkVisibility() && !element.matches(".unseen"))
  .filter(element => {
    if (element.matches("select")) {
      const probe = document.createElement("span");
      probe.style.font = getComputedStyle(element).font;
      probe.style.position = "absolute";
      probe.textContent = element.selectedOptions[0].textContent;
      document.body.append(probe);
      const width = probe.getBoundingClientRect().width;
      probe.remove();
      return width > element.clientWidth - 30;
    }
    return element.scrollWidth > element.clientWidth + 1;
  }).map(element => element.outerHTML.slice(0, 100))"""
"""The controls whose label or selected option does not fit; 30 pixels of a select are padding and arrow."""


@contextmanager
def launch_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=1000 * PATIENCE
        )
        try:
            yield started
        finally:
            started.close()


@contextmanager
def open_page(
    browser: Browser, url: str, size: str = "desk", theme: Theme = "light", *, refused: tuple[int, ...] = ()
) -> Iterator[Page]:
    """A page at `url`. In the end, nobody else was asked for anything and the browser complained of nothing but
    requests that were `refused`, of these statuses, which it always tells."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    requests, complaints = record_page_events(page)
    try:
        page.goto(url)
        yield page
        origin = "/".join(url.split("/")[:3])
        elsewhere = [address for address in requests if not address.startswith(f"{origin}/")]
        assert not elsewhere, elsewhere
        expected_complaints = [f"the server responded with a status of {status}" for status in refused]
        unexpected = [
            complaint for complaint in complaints if not any(status in complaint for status in expected_complaints)
        ]
        assert not unexpected, unexpected
        assert all(any(status in complaint for complaint in complaints) for status in expected_complaints)
    finally:
        context.close()


def record_page_events(page: Page) -> tuple[list[str], list[str]]:
    """From now on: the addresses that `page` asks for, and what the browser complains of."""
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    return requests, complaints


def assert_page_valid(page: Page) -> None:
    """It fits, and axe-core finds nothing serious."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide_elements = page.evaluate(WIDER_THAN_THE_PAGE)
    assert not wide_elements, wide_elements
    violations = Axe().run(page).response["violations"]
    findings = [(f["impact"], f["id"], [node["html"][:160] for node in f["nodes"][:3]]) for f in violations]
    serious = [finding for finding in findings if finding[0] in ("serious", "critical")]
    assert not serious, serious


def tab_to(page: Page, selector: str, max_presses: int = 80) -> None:
    """Press Tab until what `selector` names has the focus, as somebody without a mouse does."""
    for _ in range(max_presses):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{max_presses} times Tab, and {selector} was not reached")
