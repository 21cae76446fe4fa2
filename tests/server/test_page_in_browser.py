"""Try and Runs in a real browser: by keyboard alone, in both themes, on a desk and in a hand, with hostile texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from rank_k import Reranker, ScriptedModel
from rank_k.errors import MissingExtra
from rank_k.journal import Journal
from rank_k.server.config import AccessConfig
from tests.fakes.likelihood_model import make_likelihood_model
from tests.fakes.reasoning_model import ReasoningModel
from tests.server.test_journal_viewer import create_journal
from tests.support.browsing import (
    CHROMIUM,
    CLIPPED_LABELS,
    SIZES_AND_THEMES,
    Theme,
    assert_page_valid,
    launch_browser,
    open_page,
    tab_to,
)
from tests.support.serving import ServerClient, run_server
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
HEBREW = "מה גורם לגאות ולשפל"
KEY = "sk-browser-0123456789"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launch_browser() as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerClient]:
    """One that thinks aloud, word by word, and whose journal holds a job of 60 queries."""
    path = tmp_path_factory.mktemp("page") / "j.sqlite"
    create_journal(path, 60)
    with run_server(Reranker(ReasoningModel(0.01), journal=path)) as running:
        yield running


every_size_and_theme = pytest.mark.parametrize(
    ("size", "theme"),
    SIZES_AND_THEMES,
    ids=["-".join(every_size_and_theme) for every_size_and_theme in SIZES_AND_THEMES],
)


def save_screenshot(page: Page, tmp_path: Path, name: str) -> None:
    """Leave a picture in the test's folder."""
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)


# --- Try ---


@every_size_and_theme
def test_try_page_works_by_keyboard(
    browser: Browser, server: ServerClient, tmp_path: Path, size: str, theme: Theme
) -> None:
    passages = [f"{HOSTILE} tides {n} {'moon ' * (n % 3)}" for n in range(24)]
    with open_page(browser, f"{server.url}/", size, theme) as page:
        expect(page.locator("#model")).to_have_text("Model: scripted")
        tab_to(page, "#query")
        page.keyboard.type(f"tides and the moon {size} {theme} {HOSTILE}")
        tab_to(page, "#passages")
        page.keyboard.insert_text("\n".join(passages))
        assert page.locator("#count").inner_text() == "24 passages"
        page.keyboard.press("Control+Enter")
        expect(page.locator("#windows .trace .mention").first).to_be_visible()
        assert page.locator("#status.busy").count() == 1, "it is seen while it forms"
        save_screenshot(page, tmp_path, "forming")
        expect(page.locator("#seen")).to_be_visible()
        save_screenshot(page, tmp_path, "formed")
        assert page.locator("#ranking li").count() == 24
        assert page.locator("#ranking .tie").count() > 0, "ties are seen"
        assert "tokens" in page.locator("#status").inner_text()
        assert "2 windows" in page.locator("#status").inner_text()
        ranks = [text.removeprefix("=") for text in page.locator("#ranking .rank").all_inner_texts()]
        assert ranks == [str(n) for n in range(1, 25)]
        assert_page_valid(page)
        # from a mention in the trace to its passage, and on to the run
        tab_to(page, "#windows .mention")
        page.keyboard.press("ArrowRight")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.matches('#ranking button.text')")
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.getAttribute('aria-expanded')") == "true"
        assert page.locator("img:not(.brand img), main script, iframe").count() == 0
        assert HOSTILE in page.locator("#ranking").inner_text()
        page.locator("#seen").focus()
        page.keyboard.press("Enter")
        expect(page.locator("#text")).to_have_text(f"tides and the moon {size} {theme} {HOSTILE}")


def test_try_page_stop_cancels_model_call(browser: Browser) -> None:
    model = ReasoningModel(0.5)
    with run_server(Reranker(model)) as running, open_page(browser, f"{running.url}/") as page:
        page.fill("#query", "to be stopped")
        page.fill("#passages", "one stopped\ntwo\nthree")
        page.click("#go")
        expect(page.locator("#windows .trace")).to_contain_text("query")
        page.focus("#stop")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("stopped")
        wait_until(lambda: model.left == 1, "the model hears of it")
        assert page.evaluate("document.activeElement.id") == "go"


def test_try_page_sends_reasoning_and_strategy(browser: Browser) -> None:
    model = ReasoningModel()
    with run_server(Reranker(model)) as running, open_page(browser, f"{running.url}/") as page:
        page.fill("#query", "which options are sent")
        page.fill("#passages", "\n".join(f"text {n}" for n in range(30)))
        page.click("#how summary")
        page.select_option("#reasoning", "off")
        page.select_option("#strategy", "single")
        page.click("#go")
        expect(page.locator("#status")).to_contain_text("1 window ")
        assert [request.reasoning for request in model.history] == [False]


def test_try_page_shows_server_errors(browser: Browser) -> None:
    with (
        run_server(Reranker(ReasoningModel())) as running,
        open_page(browser, f"{running.url}/", refused=(422,)) as page,
    ):
        page.fill("#query", "too many")
        page.fill("#passages", "\n".join(f"text {n}" for n in range(1001)))
        page.click("#go")
        expect(page.locator("#error")).to_contain_text("at most 1,000 are allowed (got 1,001)")
        assert_page_valid(page)


def test_try_page_shows_warnings(browser: Browser) -> None:
    reranker = Reranker(ReasoningModel(), depth=2)
    with run_server(reranker) as running, open_page(browser, f"{running.url}/") as page:
        page.fill("#query", "more than are compared")
        page.fill("#passages", "one\ntwo\nthree")
        page.click("#go")
        expect(page.locator("#status")).to_contain_text("only the first 2 of 3 documents were compared")
        assert_page_valid(page)


def test_key_dialog_asks_once_and_hides_key(browser: Browser) -> None:
    with run_server(Reranker(ReasoningModel()), access=AccessConfig(keys=(KEY,))) as running:
        urls: list[str] = []
        with open_page(browser, f"{running.url}/", refused=(401,)) as page:
            page.on("request", lambda request: urls.append(request.url))
            expect(page.locator("dialog")).to_be_visible()
            assert_page_valid(page)
            page.keyboard.type("sk-wrong")
            page.keyboard.press("Enter")
            expect(page.locator("dialog [role=alert]")).to_be_visible()
            page.keyboard.type(KEY)
            page.keyboard.press("Enter")
            expect(page.locator("#model")).to_have_text("Model: scripted")
            expect(page.locator("dialog")).to_have_count(0)
            page.click("nav a:has-text('Runs')")
            page.wait_for_load_state()
            expect(page.locator("dialog")).to_have_count(0)
            assert page.evaluate("localStorage.length") == 0
            assert page.evaluate("document.cookie") == ""
        assert len(urls) > 3
        assert not [url for url in urls if KEY in url or "wrong" in url]


def test_try_page_loads_passages_from_file(browser: Browser, server: ServerClient, tmp_path: Path) -> None:
    files = {
        "lines.txt": ("one\ntwo\n", "one\ntwo"),
        "blocks.txt": ("one\nmore of it\n\ntwo\r\n", "one\nmore of it\n\ntwo"),
        "rows.jsonl": ('{"text": "one"}\n{"text": "two"}\n', "one\ntwo"),
        "list.json": ('["one", {"text": "two\\n\\nmore"}]', "one\n\ntwo\nmore"),
        "odd.json": ('{"nothing": 1}', '{"nothing": 1}'),
    }
    with open_page(browser, f"{server.url}/") as page:
        for name, (content, expected) in files.items():
            (tmp_path / name).write_text(content, encoding="utf-8")
            page.set_input_files("#file", tmp_path / name)
            expect(page.locator("#passages")).to_have_value(expected)


@every_size_and_theme
def test_try_page_explains_itself_and_ranks_example(
    browser: Browser, server: ServerClient, tmp_path: Path, size: str, theme: Theme
) -> None:
    with open_page(browser, f"{server.url}/", size, theme) as page:
        expect(page.locator("#intro")).to_contain_text("ranks each window by relevance to the query")
        save_screenshot(page, tmp_path, "introduction")
        assert_page_valid(page)
        page.click("#how summary")
        clipped = page.evaluate(CLIPPED_LABELS)
        assert clipped == [], "labels are cut off"
        page.focus("#example")
        page.keyboard.press("Enter")
        expect(page.locator("#count")).to_have_text("12 passages")
        first_query = page.input_value("#query")
        expect(page.locator("#intro")).to_be_hidden()
        expect(page.locator("#seen")).to_be_visible()
        assert page.locator("#ranking li").count() == 12
        save_screenshot(page, tmp_path, "example")
        assert_page_valid(page)
        expect(page.locator("#example")).to_have_text("Show another example")
        page.click("#example")
        expect(page.locator("#query")).not_to_have_value(first_query)
        expect(page.locator("#seen")).to_be_visible()


def test_try_page_reports_missing_examples(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    def raise_missing_extra() -> None:
        raise MissingExtra("no bm25s", "pip install 'rank-k[data]'")

    monkeypatch.setattr("rank_k.server.demo_queries.demo_queries", raise_missing_extra)
    with run_server(Reranker(ScriptedModel([]))) as running, open_page(browser, f"{running.url}/") as page:
        page.click("#example")
        expect(page.locator("#example-note")).to_contain_text("pip install 'rank-k[data]'")


def test_try_page_keeps_reasoning_and_answer_after_order(browser: Browser) -> None:
    """Whether the server sends the reasoning separately or as a part of the text."""
    inline = ScriptedModel(["<think>the second is better</think> [2] > [1]"])
    labels = ScriptedModel(["[1] no [2] yes\n[2] > [1]"])
    for model, text in (
        (ReasoningModel(), "Let me look"),
        (inline, "the second is better"),
        (labels, "[1] no [2] yes"),
    ):
        with run_server(Reranker(model)) as running, open_page(browser, f"{running.url}/") as page:
            page.fill("#query", "what stays")
            page.fill("#passages", "one\ntwo")
            page.click("#go")
            expect(page.locator("#windows .order")).to_have_count(1)
            expect(page.locator("#status.busy")).to_have_count(0)
            expect(page.locator("#windows .said")).to_contain_text(text)


def test_try_page_shows_plain_order_once(browser: Browser) -> None:
    model = ScriptedModel(["[2] > [1]"])
    with run_server(Reranker(model)) as running, open_page(browser, f"{running.url}/") as page:
        page.fill("#query", "an order")
        page.fill("#passages", "one\ntwo")
        page.click("#go")
        expect(page.locator("#status.busy")).to_have_count(0)
        expect(page.locator("#windows .order")).to_have_text("[2] > [1]")
        assert page.locator("#windows .said").inner_text().count("[2] > [1]") == 1


def test_try_page_explains_missing_model(browser: Browser, tmp_path: Path) -> None:
    create_journal(tmp_path / "j.sqlite", 1)
    with (
        run_server(None, journal=tmp_path / "j.sqlite") as running,
        open_page(browser, f"{running.url}/") as page,
    ):
        expect(page.locator("#silent")).to_contain_text("no model")
        assert page.locator("#go").is_disabled()
        assert page.locator("#example").is_disabled()
        assert page.locator("#intro").is_hidden()
        assert_page_valid(page)


def test_try_page_disables_reasoning_for_likelihood(browser: Browser, tmp_path: Path) -> None:
    model = make_likelihood_model()
    reranker = Reranker(model, method="likelihood", journal=tmp_path / "j.sqlite")
    with run_server(reranker) as running, open_page(browser, f"{running.url}/") as page:
        expect(page.locator("#model")).to_contain_text("likelihood")
        expect(page.locator("#intro-reasoning")).to_be_hidden()
        assert page.locator("#reasoning").is_disabled()
        page.fill("#query", "long")
        page.fill("#passages", "a\nbbbbbb\nccc")
        page.click("#go")
        expect(page.locator("#seen")).to_be_visible()
        assert page.locator("#ranking button.text").all_inner_texts() == ["bbbbbb", "ccc", "a"]
        page.click("#seen")
        page.click(".chip")
        expect(page.locator(".likelihoods li")).to_have_count(3)
        assert page.locator(".likelihoods li .mention").all_inner_texts() == ["[2]", "[3]", "[1]"]
        assert page.locator("#calls h3").last.inner_text() == "Order"
        save_screenshot(page, tmp_path, "likelihood")
        assert_page_valid(page)


# --- Runs ---


def select_job_run(page: Page) -> None:
    """And wait for its queries: others may be shown until then."""
    page.select_option("#run", label=page.locator("#run option", has_text="out.trec").inner_text())
    expect(page.locator("#place")).to_have_text("1–50 of 60")


@every_size_and_theme
def test_runs_page_works_by_keyboard(
    browser: Browser, server: ServerClient, tmp_path: Path, size: str, theme: Theme
) -> None:
    with open_page(browser, f"{server.url}/runs", size, theme) as page:
        job = page.locator("#run option", has_text="out.trec")
        page.wait_for_selector("#queries tr")
        tab_to(page, "#run")
        page.keyboard.type("out")
        page.keyboard.press("Enter")
        expect(page.locator("#queries tr")).to_have_count(50)
        assert job.count() == 1
        assert "of 60" in page.locator("#place").inner_text()
        save_screenshot(page, tmp_path, "list")
        assert_page_valid(page)
        tab_to(page, "#on", 120)
        page.keyboard.press("Enter")
        expect(page.locator("#place")).to_contain_text("51–60 of 60")
        page.locator("#find").focus()
        page.keyboard.type("zeta 7")
        page.keyboard.press("Enter")
        expect(page.locator("#queries tr")).to_have_count(1)
        tab_to(page, "#queries a")
        page.keyboard.press("Enter")

        expect(page.locator("#text")).to_have_text("alpha beta gamma delta epsilon zeta 7")
        assert page.locator(".chart .line").count() == 25
        assert_page_valid(page)
        tab_to(page, "#ranking button.passage")
        page.keyboard.press("ArrowDown")
        assert page.locator("#ranking li.on").count() == page.locator(".chart .line.on").count() == 1
        followed = page.locator("#followed").inner_text()
        assert "doc-" in followed
        assert "rank" in followed
        assert "→" in followed
        assert_page_valid(page)
        save_screenshot(page, tmp_path, "query")

        tab_to(page, ".chip")
        assert page.locator("#followed").is_hidden()
        page.keyboard.press("Enter")
        expect(page.locator("#window-title")).to_have_text("Round 1, window 1")
        assert page.evaluate("document.activeElement.id") == "window-title"
        tab_to(page, "#calls .mention")
        page.keyboard.press("ArrowRight")
        number = page.evaluate("document.activeElement.textContent")
        color = page.evaluate("getComputedStyle(document.activeElement).color")
        page.keyboard.press("Enter")
        row = page.locator("#shown li.on")
        assert row.locator(".number").inner_text() == number
        assert row.locator(".number").evaluate("e => getComputedStyle(e).color") == color
        tab_to(page, "#calls summary")
        page.keyboard.press("Enter")
        expect(page.locator("#calls .prompt .words")).to_contain_text("Query: alpha beta gamma")
        save_screenshot(page, tmp_path, "window")
        assert_page_valid(page)
        assert page.locator("img:not(.brand img), main script").count() == 0
        page.go_back()
        expect(page.locator("#window")).to_be_hidden()


def test_runs_page_chart_follows_pointer(browser: Browser, server: ServerClient) -> None:
    with open_page(browser, f"{server.url}/runs") as page:
        select_job_run(page)
        page.click("#queries tr:nth-child(1) a")
        box = page.locator(".chart .line circle").last.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert page.locator(".chart .line.on").count() == 1
        expect(page.locator("#followed")).to_be_visible()
        page.locator(".chip").first.hover()
        assert page.locator(".chart.marking .line.marked").count() > 5


def test_runs_page_expands_long_ranking(browser: Browser, server: ServerClient) -> None:
    with open_page(browser, f"{server.url}/runs") as page:
        select_job_run(page)
        page.click("#queries tr:nth-child(2) a")
        expect(page.locator("#ranking li")).to_have_count(26)
        expect(page.locator("#ranking .below")).to_have_text("and 5 more below")
        page.click("#all")
        expect(page.locator("#ranking li")).to_have_count(30)


def test_runs_page_reopens_query(browser: Browser, server: ServerClient) -> None:
    with open_page(browser, f"{server.url}/runs") as page:
        select_job_run(page)
        for _ in range(2):
            page.click("#queries tr:nth-child(2) a")
            expect(page.locator("#text")).to_be_visible()
            expect(page.locator("#list")).to_be_hidden()
            page.click("#up")
            expect(page.locator("#queries")).to_be_visible()
            expect(page.locator("#one")).to_be_hidden()


def test_runs_page_finds_oldest_and_reports_missing_run(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    oldest = create_journal(path, 1)
    with closing(Journal(path)) as journal:
        for number in range(120):
            journal.begin_run({"output": f"later-{number}.trec"})
    with run_server(None, journal=path) as running, open_page(browser, f"{running.url}/runs#run={oldest}") as page:
        chosen = page.locator("#run option:checked")
        expect(page.locator("#queries tr")).to_have_count(1)
        expect(chosen).to_contain_text("out.trec")
        expect(page.locator("#run option")).to_have_count(121)
        with closing(Journal(path)) as journal:
            journal.begin_run({"output": "latest.trec"})
        page.select_option("#run", label=page.locator("#run option", has_text="later-0.trec").inner_text())
        expect(page.locator("#none")).to_be_visible()
        expect(chosen).to_contain_text("later-0.trec")
        expect(page.locator("#run option")).to_have_count(122)
        page.evaluate("location.hash = '#run=nowhere'")
        expect(page.locator("#silent")).to_contain_text("no such run")
        expect(page.locator("#found")).to_be_hidden()
        assert_page_valid(page)
        page.click("#silent a")
        expect(chosen).to_contain_text("latest.trec")


def test_runs_page_shows_newest_query_first_and_groups_repeated_ones(browser: Browser, tmp_path: Path) -> None:
    reranker = Reranker(ReasoningModel(), journal=tmp_path / "j.sqlite")
    with run_server(reranker) as running:
        for query in ("first query", "repeated", "repeated", "last query", "repeated"):
            assert running.rerank(["about moons", "about tides", "about wine"], query=query).status == 200
        with open_page(browser, f"{running.url}/runs") as page:
            rows = page.locator("#queries tr")
            expect(rows).to_have_count(3)
            assert page.locator("#queries tr > th > a").all_inner_texts() == ["repeated", "last query", "first query"]
            page.click("#queries summary:has-text('2 earlier requests with this query')")
            assert_page_valid(page)
            oldest = page.locator("#queries details a").last
            oldest.click()
            expect(page.locator("#text")).to_have_text("repeated")
            assert page.evaluate("location.hash").endswith("&query=2"), "the second query of the run"


def test_runs_page_counts_passages_and_ranks_from_one(browser: Browser, tmp_path: Path) -> None:
    reranker = Reranker(ScriptedModel(["[3] > [1] > [2]"]), journal=tmp_path / "j.sqlite")
    with run_server(reranker) as running:
        running.rerank(["one", "two", "three"], query="numbers")
        with open_page(browser, f"{running.url}/runs") as page:
            page.click("#queries a")
            page.focus("#ranking li:nth-child(1) button.passage")
            expect(page.locator("#followed")).to_contain_text("passage 3 rank 3 → 1")
            page.click(".chip")
            expect(page.locator("#window-title")).to_have_text("Round 1, window 1")
            assert page.evaluate("location.hash").endswith("&query=1&round=1&window=1")
            assert page.locator("#shown .small").all_inner_texts() == ["passage 1", "passage 2", "passage 3"]


def test_runs_page_clears_search_box(browser: Browser, server: ServerClient) -> None:
    with open_page(browser, f"{server.url}/runs") as page:
        select_job_run(page)
        page.fill("#find", "zeta 7")
        page.press("#find", "Enter")
        expect(page.locator("#queries tr")).to_have_count(1)
        page.click("#queries a")
        page.click("#up")
        expect(page.locator("#queries tr")).to_have_count(50)
        expect(page.locator("#find")).to_have_value("")


def test_try_page_sets_hebrew_direction(browser: Browser) -> None:
    with run_server(Reranker(ReasoningModel())) as running, open_page(browser, f"{running.url}/") as page:
        page.fill("#query", HEBREW)
        page.fill("#passages", f"{HEBREW} הירח\nthe moon")
        page.click("#go")
        expect(page.locator("#ranking li")).to_have_count(2)
        direction = "element => getComputedStyle(element).direction"
        assert page.locator("#query").evaluate(direction) == "rtl"
        rows = page.locator("#ranking button.text")
        assert {rows.nth(n).inner_text()[:3]: rows.nth(n).evaluate(direction) for n in (0, 1)} == {
            HEBREW[:3]: "rtl",
            "the": "ltr",
        }


def test_runs_page_explains_missing_journal_file(browser: Browser) -> None:
    with run_server(Reranker(ScriptedModel([]))) as running, open_page(browser, f"{running.url}/runs") as page:
        expect(page.locator("#silent")).to_contain_text("--journal FILE")
        assert_page_valid(page)
