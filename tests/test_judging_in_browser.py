"""Judge and Compare in a real browser: by keyboard alone, in both themes, on a desk and in a hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect, sync_playwright

from rank_k.evaluation.preferences import read_judgments
from rank_k.evaluation.report import report
from rank_k.records import Candidate, Query
from rank_k.serve.comparing_room import ComparingRoom
from rank_k.serve.judging import questions
from rank_k.serve.pages import PAGES
from rank_k.serve.rules import Doors
from tests.serving import Served, served
from tests.test_judging import HEBREW, HOSTILE, SYSTEMS, Texts, study
from tests.test_report import MADE, TEXTS, assessed
from tests.test_report_in_browser import CHROMIUM, SIZES, THEMES, WIDER_THAN_THE_PAGE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

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
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


def small_study(path: Path, doors: Doors = Doors()) -> AbstractContextManager[Served]:
    """Four queries by two systems, and a report."""
    runs = {
        name: {q: [Candidate(f"{q}-{n}", -place) for place, n in enumerate(order)] for q in QUERIES}
        for name, order in zip(SYSTEMS, ("01234", "43210"), strict=True)
    }
    store = Texts({f"{q}-{n}": text for q in QUERIES for n, text in PASSAGES.items()})
    links = [(page.path, page.title, page.path == "/compare") for page in PAGES]
    report_room = ComparingRoom(lambda: report(assessed(), MADE, TEXTS, links))
    return study(path, doors, store, questions(QUERIES, TRANSLATIONS, runs), [report_room])


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with small_study(tmp_path / "judgments.jsonl") as running:
        yield running


some = pytest.mark.parametrize("opened", [("desk", "light"), ("hand", "dark")], indirect=True)
"""Of sizes and themes, where one of each is enough."""

Shoot = Callable[[str], object]


@pytest.fixture(params=[(size, theme) for size in SIZES for theme in THEMES], ids=lambda param: "-".join(param))
def opened(
    request: pytest.FixtureRequest, browser: Browser, server: Served, tmp_path: Path
) -> Iterator[tuple[Page, Shoot]]:
    """An empty page in each size and theme, and a way to leave a picture of it in the test's folder. Whatever it says
    or asks of others is a fault."""
    size, theme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    page = context.new_page()
    elsewhere, complaints = watched(page, server.url)
    yield page, lambda name: page.screenshot(path=tmp_path / f"{size}-{theme}-{name}.png")
    assert elsewhere == []
    assert complaints == []
    context.close()


def watched(page: Page, home: str) -> tuple[list[str], list[str]]:
    """What `page` will ask of others than `home`, and what will be complained of."""
    elsewhere: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda asked: None if asked.url.startswith((home, "blob:")) else elsewhere.append(asked.url))
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message))
    return elsewhere, complaints


def check(page: Page) -> None:
    """It fits, and whoever cannot see it, or see it well, can use it."""
    assert page.evaluate("document.documentElement.scrollWidth") <= page.evaluate("innerWidth")
    wider = [element for element in page.evaluate(WIDER_THAN_THE_PAGE) if 'class="skip"' not in element]
    assert wider == []
    found = Axe().run(page).response["violations"]
    assert [
        (violation["id"], [node["html"][:120] for node in violation["nodes"]])
        for violation in found
        if violation["impact"] in ("serious", "critical")
    ] == []


def press(page: Page, key: str) -> None:
    """As a person does: after having looked at what is there."""
    page.wait_for_timeout(350)
    page.keyboard.press(key)


def judged(page: Page, count: int) -> None:
    expect(page.locator("#heard")).to_contain_text(f"{count} of 4 judged.")


def test_a_study_by_keyboard_alone(opened: tuple[Page, Shoot], server: Served, tmp_path: Path) -> None:
    page, shoot = opened
    page.goto(f"{server.url}/judge")
    expect(page.locator("#welcome")).to_be_visible()
    check(page)
    shoot("welcome")
    while page.evaluate("document.activeElement.id") != "name":
        page.keyboard.press("Tab")
    page.keyboard.type("anna 012")
    page.keyboard.press("Enter")
    judged(page, 0)
    assert page.evaluate("document.activeElement.id") == "query", "which is what a screen reader reads next"
    check(page)
    shoot("question")
    press(page, "x")
    expect(page.locator("#all")).to_have_attribute("aria-pressed", "true")
    check(page)
    shoot("in-full")
    for count, key in enumerate("120", 1):
        press(page, key)
        judged(page, count)
    expect(page.locator("#query")).not_to_be_empty()
    last = page.locator("#query").inner_text()
    press(page, "u")
    judged(page, 2)
    press(page, "1")
    judged(page, 3)
    assert page.locator("#query").inner_text() == last
    page.reload()
    judged(page, 3)
    assert page.locator("#query").inner_text() == last
    press(page, "2")
    judged(page, 4)
    expect(page.locator("#end")).to_be_visible()
    check(page)
    shoot("end")
    press(page, "u")
    judged(page, 3)
    press(page, "0")
    judged(page, 4)
    rows = [row for row in read_judgments(tmp_path / "judgments.jsonl") if row.judge == "anna 012"]
    assert [row.choice for row in rows] == ["left", "right", "tie", "undone", "left", "right", "undone", "tie"]
    assert all(row.seconds is None or 0.3 <= row.seconds < 60 for row in rows)
    page.locator("summary").focus()
    page.keyboard.press("Enter")
    with page.expect_download() as download:
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
    assert download.value.suggested_filename == "judgments.jsonl"
    assert read_judgments(Path(download.value.path())) == rows


@some
def test_texts_are_shown_as_they_are_and_in_their_own_direction(opened: tuple[Page, Shoot], server: Served) -> None:
    page, shoot = opened
    page.add_init_script("localStorage.setItem('rank-k judge', 'ben')")
    page.goto(f"{server.url}/judge")
    seen = set()
    for count in range(4):
        judged(page, count)
        assert page.locator("main img, main script, main iframe").count() == 0
        passages = page.locator(".sides .text")
        assert passages.count() == 10
        assert passages.filter(has_text="onerror").first.inner_text() == HOSTILE
        hebrew = passages.filter(has_text=HEBREW).first
        assert hebrew.evaluate("element => getComputedStyle(element).direction") == "rtl"
        short = passages.filter(has_text="short").first
        assert short.evaluate("element => getComputedStyle(element).direction") == "ltr"
        query, translation = page.locator("#query"), page.locator("#translation")
        seen.add((query.inner_text(), translation.inner_text() if translation.is_visible() else None))
        for shown in (query, translation) if translation.is_visible() else (query,):
            is_hebrew = HEBREW in shown.inner_text()
            assert shown.evaluate("element => getComputedStyle(element).direction") == ("rtl" if is_hebrew else "ltr")
        if query.inner_text() == HEBREW:
            shoot("hebrew")
        check(page)
        press(page, "0")
    judged(page, 4)
    assert seen == {(query.text.strip(), TRANSLATIONS.get(query_id)) for query_id, query in QUERIES.items()}


@some
def test_long_passages_open_one_by_one(opened: tuple[Page, Shoot], server: Served) -> None:
    page, shoot = opened
    page.add_init_script("localStorage.setItem('rank-k judge', 'chen')")
    page.goto(f"{server.url}/judge")
    judged(page, 0)
    long = page.locator("#left .passage").filter(has_text="not in a hurry")
    short = page.locator("#left .passage").filter(has_text="short")
    expect(short.get_by_role("button")).to_have_count(0)
    expect(short).to_contain_text("in ranking 2")
    button, text = long.get_by_role("button"), long.locator(".text")
    height = text.bounding_box()["height"]  # type: ignore[index]
    expect(button).to_have_attribute("aria-expanded", "false")
    button.focus()
    page.keyboard.press("Enter")
    expect(button).to_have_attribute("aria-expanded", "true")
    expect(button).to_have_text("Show less of passage 3")
    assert text.bounding_box()["height"] > 2 * height  # type: ignore[index]
    shoot("one-open")
    page.keyboard.press("Enter")
    assert text.bounding_box()["height"] == height  # type: ignore[index]
    judged(page, 0)


@some
def test_the_report_stands_among_the_pages(opened: tuple[Page, Shoot], server: Served) -> None:
    page, shoot = opened
    page.goto(f"{server.url}/")
    page.get_by_role("link", name="Compare").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/compare/*")
    expect(page.get_by_role("heading", level=1)).to_have_text("Evaluation of 3 runs")
    expect(page.locator("nav a[aria-current]")).to_have_text("Compare")
    shoot("compare")
    check(page)
    page.get_by_role("link", name="Judge").focus()
    page.keyboard.press("Enter")
    page.wait_for_url("**/judge")
    expect(page.locator("#welcome")).to_be_visible()


def test_without_runs_both_pages_say_how_to_name_them(browser: Browser) -> None:
    with served(None) as server:
        page = browser.new_page()
        elsewhere, complaints = watched(page, server.url)
        for path in ("/judge", "/compare"):
            page.goto(server.url + path)
            expect(page.locator("main pre")).to_contain_text("rank-k serve --compare")
            check(page)
        page.close()
        assert (elsewhere, complaints) == ([], [])


def test_where_a_key_is_asked_for_it_is_given_once(browser: Browser, tmp_path: Path) -> None:
    with small_study(tmp_path / "judgments.jsonl", Doors(keys=("sk-judges-0123456789",))) as server:
        page = browser.new_page()
        page.goto(f"{server.url}/judge")
        page.locator("#key").fill("sk-judges-0123456789")
        page.keyboard.press("Enter")
        page.locator("#name").fill("anna")
        page.keyboard.press("Enter")
        judged(page, 0)
        press(page, "1")
        judged(page, 1)
        page.goto(f"{server.url}/compare")
        page.wait_for_url("**/compare/*")
        expect(page.get_by_role("heading", level=1)).to_have_text("Evaluation of 3 runs")
        assert "sk-" not in page.url
        page.close()


def test_a_server_that_went_away_loses_nothing(browser: Browser, tmp_path: Path) -> None:
    page = browser.new_page()
    with small_study(tmp_path / "judgments.jsonl") as server:
        page.goto(f"{server.url}/judge")
        page.locator("#name").fill("anna")
        page.keyboard.press("Enter")
        judged(page, 0)
    asked = page.locator("#query").inner_text()
    press(page, "1")
    expect(page.locator("#told")).to_have_text("The server does not answer.")
    assert page.locator("#query").inner_text() == asked
    expect(page.locator("[data-choice=left]")).to_be_enabled()
    page.close()
