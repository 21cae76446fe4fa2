"""The report in a real browser: from a file, in both themes, on a desk and in a hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from rank_k.reports.evaluation_report import render_report
from rank_k.reports.figures import WIDTH
from tests.reports.test_evaluation_report import HEBREW, HOSTILE, MADE, TEXTS, assessed
from tests.support.browsing import CHROMIUM, SIZES, THEMES, launch_browser, record_page_events

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as chromium:
        yield chromium


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with hostile names and with Hebrew among the topics that were hurt."""
    comparison = assessed()
    hebrew_texts = {
        change.query_id: HEBREW for run in comparison.compared_runs for change in comparison.largest_losses(run)[:1]
    }
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(render_report(comparison, MADE, TEXTS | hebrew_texts), encoding="utf-8")
    return path


@pytest.fixture(params=[(size, theme) for size in SIZES for theme in THEMES], ids=lambda param: "-".join(param))
def report_page(request: pytest.FixtureRequest, browser: Browser, report_file: Path, tmp_path: Path) -> Iterator[Page]:
    """The page, in each size and theme. A picture of it is left in the test's folder."""
    size, theme = request.param
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=theme)
    page = context.new_page()
    requests, page_errors = record_page_events(page)
    page.goto(report_file.as_uri())
    page.screenshot(path=tmp_path / f"{size}-{theme}.png", full_page=True)
    yield page
    assert requests == [report_file.as_uri()], "nothing but the file itself"
    assert page_errors == []
    context.close()


WIDER_THAN_THE_PAGE = """() => [...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  return (box.right > innerWidth + 1 || box.left < -1) && !element.closest(".scroll");
}).map(element => element.outerHTML.slice(0, 80))"""

CONTRASTS = """() => {
  const luminance = color => {
    const [r, g, b] = color.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * r + .7152 * g + .0722 * b;
  };
  const paper = luminance(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("body *")].filter(element => element.checkVisibility() &&
      [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())).map(element => {
    const ink = luminance(getComputedStyle(element).color);
    return [(Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05), element.outerHTML.slice(0, 80)];
  });
}"""


SHOWN_FIGURES = "[...document.querySelectorAll('figure img')].map(image => image.currentSrc)"


def test_report_fits_viewport_with_readable_contrast(report_page: Page) -> None:
    assert report_page.evaluate("document.documentElement.scrollWidth") <= report_page.evaluate("innerWidth")
    assert report_page.evaluate(WIDER_THAN_THE_PAGE) == []
    contrasts = report_page.evaluate(CONTRASTS)
    assert len(contrasts) > 150
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == [], "WCAG 2.2 AA, text"
    assert report_page.evaluate("document.compatMode") == "CSS1Compat"
    images = report_page.evaluate(
        "[...document.querySelectorAll('figure img')].map(i => [i.width, i.height, i.naturalWidth, i.naturalHeight])"
    )
    assert len(images) == 5
    for width, height, natural_width, natural_height in images:
        assert 300 <= width <= report_page.evaluate("innerWidth")
        assert height == pytest.approx(width * natural_height / natural_width, abs=1)
        assert 12 * width / (WIDTH * 4 / 3) >= 7, "CSS pixels, of the names in figures"


def test_report_shows_hostile_names_as_text(report_page: Page) -> None:
    assert report_page.locator("img:not(figure img), script, iframe, object, embed").count() == 0
    assert HOSTILE in report_page.locator("bdi", has_text="onerror").first.inner_text()
    assert report_page.evaluate("document.title") == "Evaluation of 3 runs"


def test_report_lays_out_hebrew_right_to_left(report_page: Page) -> None:
    cell = report_page.locator("td", has_text=HEBREW).first
    assert cell.evaluate("cell => getComputedStyle(cell).direction") == "rtl"
    other = (
        report_page.locator("td.text", has_text="moves the tides")
        .or_(report_page.locator("td.text:not(:has-text('מ'))"))
        .first
    )
    assert other.evaluate("cell => getComputedStyle(cell).direction") == "ltr"


def test_report_is_reachable_by_keyboard(report_page: Page) -> None:
    reached_elements = set()
    for _ in range(40):
        report_page.keyboard.press("Tab")
        reached_elements.add(
            report_page.evaluate("document.activeElement.className || document.activeElement.localName")
        )
    assert {"scroll", "summary"} <= reached_elements
    details = report_page.locator("details").first
    details.locator("summary").focus()
    report_page.keyboard.press("Enter")
    assert details.locator("tbody tr").count() == len(details.locator("tbody tr").all()) == 43
    assert details.locator("table").is_visible()
    assert report_page.evaluate("document.documentElement.scrollWidth") <= report_page.evaluate("innerWidth")


def test_report_scrolls_wide_tables_in_their_box(report_page: Page) -> None:
    boxes = report_page.evaluate("[...document.querySelectorAll('.scroll')].map(b => [b.scrollWidth, b.clientWidth])")
    wide_tables = [scroll_width for scroll_width, colors in boxes if scroll_width > colors]
    assert wide_tables or report_page.evaluate("innerWidth") > 1000
    layers = "getComputedStyle(document.querySelector('.scroll')).backgroundAttachment"
    assert report_page.evaluate(layers) == "local, local, scroll, scroll", "a shadow shows that a table continues"
    captions = report_page.evaluate(
        "[...document.querySelectorAll('caption > span')].map(c => c.getBoundingClientRect().right)"
    )
    assert max(captions) <= report_page.evaluate("innerWidth"), "what a table is about is read without scrolling"


def test_report_figures_follow_the_theme(browser: Browser, report_file: Path) -> None:
    colors, figures = {}, {}
    for theme in THEMES:
        page = browser.new_page(color_scheme=theme)
        page.goto(report_file.as_uri())
        colors[theme] = page.evaluate(
            "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color]"
        )
        figures[theme] = page.evaluate(SHOWN_FIGURES)
        page.close()
    for light, dark in zip(colors["light"] + figures["light"], colors["dark"] + figures["dark"], strict=True):
        assert light != dark


def test_report_prints_on_white(browser: Browser, report_file: Path, tmp_path: Path) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(report_file.as_uri())
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(SHOWN_FIGURES) == page.evaluate("[...document.querySelectorAll('figure img')].map(i => i.src)")
    page.pdf(path=tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
    page.close()
