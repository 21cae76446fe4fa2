"""Judge and Compare in a real browser: by keyboard alone, in both themes, on a desk and in a hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from rank_k.evaluation.preferences import read_judgments
from rank_k.reports.evaluation_report import render_report
from rank_k.server.config import AccessConfig
from rank_k.server.judging import pairwise_items
from rank_k.server.report_routes import report_routes
from rank_k.server.web_pages import PAGES
from rank_k.types import Candidate, Query
from tests.reports.test_evaluation_report import MADE, TEXTS, assessed
from tests.server.test_judging import HEBREW, HOSTILE, SYSTEMS, FakePassageStore
from tests.server.test_judging_routes import run_judging_server
from tests.support.browsing import (
    CHROMIUM,
    SIZES_AND_THEMES,
    Theme,
    assert_page_valid,
    launch_browser,
    open_page,
    tab_to,
)
from tests.support.serving import ServerClient, run_server

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

KEY = "sk-judges-0123456789"
LONG = "The tide follows the moon, and the moon is not in a hurry. " * 30
PASSAGES = {"0": HOSTILE, "1": HEBREW + " " + "הירח גורם לגאות. " * 40, "2": LONG, "3": "short", "4": "w" * 400}
QUERIES = {
    "q1": Query("q1", "what moves the tides"),
    "q2": Query("q2", HEBREW),
    "q3": Query("q3", HOSTILE + " " + "a long query goes on and on " * 12),
    "q4": Query("q4", "q" * 200),
}
TRANSLATIONS = {"q1": HEBREW, "q2": "what moves the tides"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as started:
        yield started


def run_small_study(path: Path, access: AccessConfig = AccessConfig()) -> AbstractContextManager[ServerClient]:
    """Four queries by two systems, and a report."""
    runs = {
        name: {q: [Candidate(f"{q}-{n}", -place) for place, n in enumerate(order)] for q in QUERIES}
        for name, order in zip(SYSTEMS, ("01234", "43210"), strict=True)
    }
    store = FakePassageStore({f"{q}-{n}": text for q in QUERIES for n, text in PASSAGES.items()})
    links = [(path, title, path == "/compare") for path, title in PAGES.items()]
    report = report_routes(lambda: render_report(assessed(), MADE, TEXTS, links))
    return run_judging_server(path, access, store, pairwise_items(QUERIES, TRANSLATIONS, runs), [report])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerClient]:
    with run_small_study(tmp_path / "judgments.jsonl") as running:
        yield running


every_size_and_theme = pytest.mark.parametrize(
    ("size", "theme"),
    SIZES_AND_THEMES,
    ids=["-".join(every_size_and_theme) for every_size_and_theme in SIZES_AND_THEMES],
)
extreme_sizes_and_themes = pytest.mark.parametrize(
    ("size", "theme"), [SIZES_AND_THEMES[0], SIZES_AND_THEMES[-1]], ids=["desk-light", "hand-dark"]
)


def press_key(page: Page, key: str) -> None:
    """As a person does: after having looked at what is there."""
    page.wait_for_timeout(350)
    page.keyboard.press(key)


def wait_for_judged_count(page: Page, count: int) -> None:
    expect(page.locator("#heard")).to_contain_text(f"{count} of 4 judged.")


def begin_judging(page: Page) -> None:
    """Give a name, by keyboard, and see the first question."""
    tab_to(page, "#name")
    page.keyboard.type("anna 012")
    page.keyboard.press("Enter")
    wait_for_judged_count(page, 0)


def is_stacked(page: Page) -> bool:
    """Whether what stands above something ends above it."""
    rows = page.evaluate("""() => [".headline", "#asked", "#translation", ".sides"]
      .map(name => document.querySelector(name)).filter(element => element.checkVisibility()).flatMap(element => {
        const top = element.getBoundingClientRect().top + scrollY;
        return [top, top + Math.max(element.scrollHeight, element.offsetHeight) - 1];
      })""")
    return list(rows) == sorted(rows)


def text_direction(page: Page, selector: str) -> str:
    direction: str = page.locator(selector).first.evaluate("element => getComputedStyle(element).direction")
    return direction


@every_size_and_theme
def test_judge_page_works_by_keyboard(
    browser: Browser, server: ServerClient, tmp_path: Path, size: str, theme: Theme
) -> None:
    with open_page(browser, f"{server.url}/judge", size, theme) as page:
        expect(page.locator("#welcome")).to_be_visible()
        assert_page_valid(page)
        page.screenshot(path=tmp_path / "welcome.png")
        begin_judging(page)
        assert page.evaluate("document.activeElement.id") == "asked", "which is what a screen reader reads next"
        assert_page_valid(page)
        assert is_stacked(page)
        page.screenshot(path=tmp_path / "question.png")
        press_key(page, "x")
        expect(page.locator("#all")).to_have_attribute("aria-pressed", "true")
        assert_page_valid(page)
        page.screenshot(path=tmp_path / "in-full.png")
        for count, key in enumerate("120", 1):
            press_key(page, key)
            wait_for_judged_count(page, count)
        last = page.locator("#asked").inner_text()
        press_key(page, "u")
        wait_for_judged_count(page, 2)
        press_key(page, "1")
        wait_for_judged_count(page, 3)
        page.reload()
        wait_for_judged_count(page, 3)
        assert page.locator("#asked").inner_text() == last
        press_key(page, "2")
        wait_for_judged_count(page, 4)
        expect(page.locator("#end")).to_be_visible()
        assert_page_valid(page)
        page.screenshot(path=tmp_path / "end.png")
        press_key(page, "u")
        wait_for_judged_count(page, 3)
        press_key(page, "0")
        wait_for_judged_count(page, 4)
        rows = read_judgments(tmp_path / "judgments.jsonl")
        assert [row.choice for row in rows] == ["left", "right", "tie", "undone", "left", "right", "undone", "tie"]
        assert {row.judge for row in rows} == {"anna 012"}
        assert all(row.seconds is None or 0.3 <= row.seconds < 60 for row in rows)
        tab_to(page, "summary")
        page.keyboard.press("Enter")
        tab_to(page, "#download")
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        assert download.value.suggested_filename == "judgments.jsonl"
        assert read_judgments(Path(download.value.path())) == rows


@extreme_sizes_and_themes
def test_judge_page_shows_texts_verbatim_with_direction(
    browser: Browser, server: ServerClient, tmp_path: Path, size: str, theme: Theme
) -> None:
    with open_page(browser, f"{server.url}/judge", size, theme) as page:
        begin_judging(page)
        texts = set()
        for count in range(4):
            wait_for_judged_count(page, count)
            assert page.locator("main img, main script, main iframe").count() == 0
            passages = page.locator(".sides .wording")
            assert passages.count() == 10
            assert passages.filter(has_text="onerror").first.inner_text() == HOSTILE
            assert text_direction(page, f".sides .wording:has-text('{HEBREW}')") == "rtl"
            assert text_direction(page, ".sides .wording:has-text('short')") == "ltr"
            query, translation = page.locator("#asked").inner_text(), page.locator("#translation")
            translated = translation.inner_text() if translation.is_visible() else None
            texts.add((query, translated))
            assert text_direction(page, "#asked") == ("rtl" if query == HEBREW else "ltr")
            if translated is not None:
                assert text_direction(page, "#translation") == ("rtl" if translated == HEBREW else "ltr")
            if query == HEBREW:
                page.screenshot(path=tmp_path / "hebrew.png")
            assert_page_valid(page)
            press_key(page, "0")
        wait_for_judged_count(page, 4)
        assert texts == {(query.text.strip(), TRANSLATIONS.get(query_id)) for query_id, query in QUERIES.items()}


@extreme_sizes_and_themes
def test_judge_page_expands_single_passages(
    browser: Browser, server: ServerClient, tmp_path: Path, size: str, theme: Theme
) -> None:
    with open_page(browser, f"{server.url}/judge", size, theme) as page:
        begin_judging(page)
        long = page.locator("#left .offered").filter(has_text="not in a hurry")
        short = page.locator("#left .offered").filter(has_text="short")
        expect(short.get_by_role("button")).to_have_count(0)
        expect(short).to_contain_text("in ranking 2")
        button = long.get_by_role("button")

        def height() -> float:
            height: float = long.locator(".wording").evaluate("element => element.getBoundingClientRect().height")
            return height

        height_before = height()
        expect(button).to_have_attribute("aria-expanded", "false")
        button.focus()
        page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-expanded", "true")
        expect(button).to_have_text("Show less of passage 3")
        assert height() > 2 * height_before
        page.screenshot(path=tmp_path / "one-open.png")
        page.keyboard.press("Enter")
        expect(button).to_have_attribute("aria-expanded", "false")
        assert height() == height_before
        wait_for_judged_count(page, 0)


@extreme_sizes_and_themes
def test_compare_page_opens_report(
    browser: Browser, server: ServerClient, tmp_path: Path, size: str, theme: Theme
) -> None:
    with open_page(browser, f"{server.url}/judge", size, theme) as page:
        tab_to(page, "nav a[href='/compare']")
        page.keyboard.press("Enter")
        page.wait_for_url("**/compare/*")
        expect(page.get_by_role("heading", level=1)).to_have_text("Evaluation of 3 runs")
        expect(page.locator("nav a[aria-current]")).to_have_text("Compare")
        page.screenshot(path=tmp_path / "compare.png")
        assert_page_valid(page)
        tab_to(page, "nav a[href='/judge']")
        page.keyboard.press("Enter")
        page.wait_for_url("**/judge")
        expect(page.locator("#welcome")).to_be_visible()


def test_judge_and_compare_pages_explain_missing_runs(browser: Browser) -> None:
    with run_server(None) as server:
        for path in ("/judge", "/compare"):
            with open_page(browser, server.url + path) as page:
                expect(page.locator("main pre")).to_contain_text("rank-k serve --compare")
                assert_page_valid(page)


def test_judge_page_asks_for_key_once(browser: Browser, tmp_path: Path) -> None:
    with (
        run_small_study(tmp_path / "judgments.jsonl", AccessConfig(keys=(KEY,))) as server,
        open_page(browser, f"{server.url}/judge", refused=(401,)) as page,
    ):
        page.locator("#key").fill(KEY)
        page.keyboard.press("Enter")
        begin_judging(page)
        press_key(page, "1")
        wait_for_judged_count(page, 1)
        page.goto(f"{server.url}/compare")
        page.wait_for_url("**/compare/*")
        expect(page.get_by_role("heading", level=1)).to_have_text("Evaluation of 3 runs")
        assert "sk-" not in page.url


def test_judge_page_keeps_state_when_server_stops(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    with run_small_study(tmp_path / "judgments.jsonl") as server:
        page.goto(f"{server.url}/judge")
        begin_judging(page)
    query = page.locator("#asked").inner_text()
    press_key(page, "1")
    expect(page.locator("#told")).to_have_text("The server cannot be reached.")
    assert page.locator("#asked").inner_text() == query
    expect(page.locator("[data-choice=left]")).to_be_enabled()
    page.close()
