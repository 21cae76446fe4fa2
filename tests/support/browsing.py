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
LOOKS = [(size, theme) for size in SIZES for theme in THEMES]

WIDER_THAN_THE_PAGE = """() => [...document.querySelectorAll("body *")].filter(element => {
  if (!element.checkVisibility() || element.closest(".scroll, svg, .skip, .unseen")) return false;
  const box = element.getBoundingClientRect();
  return box.right > innerWidth + 1 || box.left < -1;
}).map(element => element.outerHTML.slice(0, 120))"""


@contextmanager
def a_browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"], timeout=1000 * PATIENCE
        )
        try:
            yield started
        finally:
            started.close()


@contextmanager
def visited(
    browser: Browser, url: str, size: str = "desk", theme: Theme = "light", *, refused: tuple[int, ...] = ()
) -> Iterator[Page]:
    """A page at `url`. In the end, nobody else was asked for anything and the browser complained of nothing but
    requests that were `refused`, of these statuses, which it always tells."""
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    context.set_default_timeout(1000 * PATIENCE)
    page = context.new_page()
    requests, complaints = heard(page)
    try:
        page.goto(url)
        yield page
        origin = "/".join(url.split("/")[:3])
        elsewhere = [asked for asked in requests if not asked.startswith(f"{origin}/")]
        assert not elsewhere, elsewhere
        told = [f"the server responded with a status of {status}" for status in refused]
        amiss = [said for said in complaints if not any(status in said for status in told)]
        assert not amiss, amiss
        assert all(any(status in said for said in complaints) for status in told)
    finally:
        context.close()


def heard(page: Page) -> tuple[list[str], list[str]]:
    """From now on: the addresses that `page` asks for, and what the browser complains of."""
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda asked: requests.append(asked.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    return requests, complaints


def assert_in_order(page: Page) -> None:
    """It fits, and axe-core finds nothing serious."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    wide = page.evaluate(WIDER_THAN_THE_PAGE)
    assert not wide, wide
    found = Axe().run(page).response["violations"]
    told = [(f["impact"], f["id"], [node["html"][:160] for node in f["nodes"][:3]]) for f in found]
    serious = [finding for finding in told if finding[0] in ("serious", "critical")]
    assert not serious, serious


def tabbed_to(page: Page, selector: str, most: int = 80) -> None:
    """Press Tab until what `selector` names has the focus, as somebody without a mouse does."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{most} times Tab, and {selector} was not reached")
