"""A study's report in a real browser: from a file, in both themes, on a desk and in a hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from rank_k.study.grid import PublishedResult, expand_cells
from rank_k.study.report import write_study_report
from tests.reports.test_report_in_browser import (  # noqa: F401 (its fixture and its marks are ours too)
    CONTRASTS,
    WIDER_THAN_THE_PAGE,
    browser,
    pytestmark,
)
from tests.support.browsing import SIZES, THEMES
from tests.support.study_data import StudyBench

HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def report_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all that it can hold."""
    folder = tmp_path_factory.mktemp("study")
    bench = StudyBench(folder / "bench")
    published = PublishedResult("c", HOSTILE, "judge", "nDCG@10", 0.5, "nobody " * 20)
    study = bench.study(
        {"strategy": ["sliding", "blocks", "topdown"], "samples": [1, 3]},
        by_difficulty=True,
        by_round=True,
        published=(published,),
        measures=("nDCG@10", "AP"),
    )
    bench.run(*expand_cells(study))
    write_study_report(folder / "report.html", bench.results(study), "rank-k study --question " + HOSTILE)
    return folder / "report.html"


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("theme", THEMES)
def test_study_report_fits_viewport_and_loads_nothing(
    size: str,
    theme: str,
    browser: Browser,  # noqa: F811
    report_file: Path,
) -> None:
    width, height = SIZES[size]
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)  # type: ignore[arg-type]
    requests: list[str] = []
    page_errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: page_errors.append(message.text))
    page.on("pageerror", lambda error: page_errors.append(str(error)))
    page.on("dialog", lambda dialog: page_errors.append(dialog.message))
    page.goto(report_file.as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate(WIDER_THAN_THE_PAGE) == []
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 200
    assert [contrast for contrast in contrasts if contrast[0] < 4.5] == [], "WCAG 2.2 AA, text"
    assert page.locator("img:not(figure img), script, iframe").count() == 0
    assert page.locator("td", has_text="onerror").first.inner_text() == HOSTILE
    assert page.locator("figure img").count() >= 5
    assert requests == [report_file.as_uri()]
    assert page_errors == []
    page.close()
