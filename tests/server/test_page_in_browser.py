"""Try and Runs in a real browser: by keyboard alone, in both themes, on a desk and in a hand, with hostile texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from rank_k import Reranker, ScriptedModel
from rank_k.journal import Journal
from rank_k.models.base import Capabilities
from rank_k.server.config import AccessConfig
from rank_k.types import Request, Response, Usage
from tests.fakes.thinking_model import ThinkingAloud
from tests.server.test_journal_routes import filled
from tests.support.browsing import CHROMIUM, LOOKS, Theme, a_browser, assert_in_order, tabbed_to, visited
from tests.support.serving import Served, served
from tests.support.waiting import until

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
HEBREW = "מה גורם לגאות ולשפל"
KEY = "sk-browser-0123456789"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with a_browser() as started:
        yield started


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One that thinks aloud, word by word, and whose journal holds a job of 60 queries."""
    path = tmp_path_factory.mktemp("page") / "j.sqlite"
    filled(path, 60)
    with served(Reranker(ThinkingAloud(0.01), journal=path)) as running:
        yield running


look = pytest.mark.parametrize(("size", "theme"), LOOKS, ids=["-".join(look) for look in LOOKS])


def pictured(page: Page, tmp_path: Path, name: str) -> None:
    """Leave a picture in the test's folder."""
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)


# --- Try ---


@look
def test_a_ranking_is_tried_by_keyboard_alone(
    browser: Browser, server: Served, tmp_path: Path, size: str, theme: Theme
) -> None:
    passages = [f"{HOSTILE} tides {n} {'moon ' * (n % 3)}" for n in range(24)]
    with visited(browser, f"{server.url}/", size, theme) as page:
        expect(page.locator("#model")).to_have_text("scripted")
        tabbed_to(page, "#query")
        page.keyboard.type(f"tides and the moon {size} {theme} {HOSTILE}")
        tabbed_to(page, "#passages")
        page.keyboard.insert_text("\n".join(passages))
        assert page.locator("#count").inner_text() == "24 passages"
        page.keyboard.press("Control+Enter")
        expect(page.locator("#windows .trace .mention").first).to_be_visible()
        assert page.locator("#status.busy").count() == 1, "it is seen while it forms"
        pictured(page, tmp_path, "forming")
        expect(page.locator("#seen")).to_be_visible()
        pictured(page, tmp_path, "formed")
        assert page.locator("#ranking li").count() == 24
        assert page.locator("#ranking .tie").count() > 0, "ties are seen"
        assert "tokens" in page.locator("#status").inner_text()
        assert "2 windows" in page.locator("#status").inner_text()
        ranks = [text.removeprefix("=") for text in page.locator("#ranking .rank").all_inner_texts()]
        assert ranks == [str(n) for n in range(1, 25)]
        assert_in_order(page)
        # from a mention in the trace to its passage, and on to the run
        tabbed_to(page, "#windows .mention")
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


def test_stop_ends_the_models_work(browser: Browser) -> None:
    model = ThinkingAloud(0.5)
    with served(Reranker(model)) as running, visited(browser, f"{running.url}/") as page:
        page.fill("#query", "to be stopped")
        page.fill("#passages", "one stopped\ntwo\nthree")
        page.click("#go")
        expect(page.locator("#windows .trace")).to_contain_text("query")
        page.focus("#stop")
        page.keyboard.press("Enter")
        expect(page.locator("#status")).to_contain_text("stopped")
        until(lambda: model.left == 1, "the model hears of it")
        assert page.evaluate("document.activeElement.id") == "go"


def test_what_the_server_says_no_to_is_told(browser: Browser) -> None:
    with served(Reranker(ThinkingAloud())) as running, visited(browser, f"{running.url}/", refused=(422,)) as page:
        page.fill("#query", "too many")
        page.fill("#passages", "\n".join(f"text {n}" for n in range(1001)))
        page.click("#go")
        expect(page.locator("#error")).to_contain_text("1,001 are given, at most 1,000 are taken")
        assert_in_order(page)


def test_what_a_ranking_is_not_to_be_trusted_for_is_told(browser: Browser) -> None:
    reranker = Reranker(ThinkingAloud(), depth=2)
    with served(reranker) as running, visited(browser, f"{running.url}/") as page:
        page.fill("#query", "more than are compared")
        page.fill("#passages", "one\ntwo\nthree")
        page.click("#go")
        expect(page.locator("#status")).to_contain_text("only the first 2 of 3 documents were compared")
        assert_in_order(page)


def test_a_key_is_asked_for_once_and_never_put_into_an_address(browser: Browser) -> None:
    with served(Reranker(ThinkingAloud()), access=AccessConfig(keys=(KEY,))) as running:
        asked: list[str] = []
        with visited(browser, f"{running.url}/", refused=(401,)) as page:
            page.on("request", lambda request: asked.append(request.url))
            expect(page.locator("dialog")).to_be_visible()
            assert_in_order(page)
            page.keyboard.type("sk-wrong")
            page.keyboard.press("Enter")
            expect(page.locator("dialog [role=alert]")).to_be_visible()
            page.keyboard.type(KEY)
            page.keyboard.press("Enter")
            expect(page.locator("#model")).to_have_text("scripted")
            expect(page.locator("dialog")).to_have_count(0)
            page.click("nav a:has-text('Runs')")
            page.wait_for_load_state()
            expect(page.locator("dialog")).to_have_count(0)
            assert page.evaluate("localStorage.length") == 0
            assert page.evaluate("document.cookie") == ""
        assert len(asked) > 3
        assert not [url for url in asked if KEY in url or "wrong" in url]


def test_passages_come_from_a_file_and_from_the_demo(browser: Browser, server: Served, tmp_path: Path) -> None:
    files = {
        "lines.txt": ("one\ntwo\n", "one\ntwo"),
        "blocks.txt": ("one\nmore of it\n\ntwo\r\n", "one\nmore of it\n\ntwo"),
        "rows.jsonl": ('{"text": "one"}\n{"text": "two"}\n', "one\ntwo"),
        "list.json": ('["one", {"text": "two\\n\\nmore"}]', "one\n\ntwo\nmore"),
        "odd.json": ('{"nothing": 1}', '{"nothing": 1}'),
    }
    with visited(browser, f"{server.url}/") as page:
        for name, (content, wanted) in files.items():
            (tmp_path / name).write_text(content, encoding="utf-8")
            page.set_input_files("#file", tmp_path / name)
            expect(page.locator("#passages")).to_have_value(wanted)
        page.locator("#demo").focus()
        expect(page.locator("#demo option")).to_have_count(7)
        page.keyboard.press("ArrowDown")
        expect(page.locator("#count")).to_have_text("12 passages")
        assert page.input_value("#query").startswith("how do I give up waiting")


def test_without_a_model_the_page_says_so(browser: Browser, tmp_path: Path) -> None:
    filled(tmp_path / "j.sqlite", 1)
    with (
        served(None, journal=tmp_path / "j.sqlite") as running,
        visited(browser, f"{running.url}/") as page,
    ):
        expect(page.locator("#silent")).to_contain_text("no model")
        assert page.locator("#go").is_disabled()
        assert_in_order(page)


def test_a_server_that_ranks_by_likelihood_offers_no_thought(browser: Browser, tmp_path: Path) -> None:
    def likelier_if_longer(request: Request) -> Response:
        assert request.forced_text is not None
        score = len(request.messages[0].content) - 1000.0
        return Response(request.forced_text, None, "stop", Usage(10, 1), tokens=((request.forced_text, score),))

    model = ScriptedModel(
        likelier_if_longer, abilities=Capabilities(logprobs=True, reasons=False, scores_given_text=True)
    )
    reranker = Reranker(model, method="likelihood", journal=tmp_path / "j.sqlite")
    with served(reranker) as running, visited(browser, f"{running.url}/") as page:
        expect(page.locator("#model")).to_contain_text("likelihood")
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
        pictured(page, tmp_path, "likelihood")
        assert_in_order(page)


# --- Runs ---


def choose_the_job(page: Page) -> None:
    """And wait for its queries: others may be shown until then."""
    page.select_option("#run", label=page.locator("#run option", has_text="out.trec").inner_text())
    expect(page.locator("#place")).to_have_text("1–50 of 60")


@look
def test_a_run_is_looked_through_by_keyboard_alone(
    browser: Browser, server: Served, tmp_path: Path, size: str, theme: Theme
) -> None:
    with visited(browser, f"{server.url}/runs", size, theme) as page:
        job = page.locator("#run option", has_text="out.trec")
        page.wait_for_selector("#queries tr")
        tabbed_to(page, "#run")
        page.keyboard.type("out")
        page.keyboard.press("Enter")
        expect(page.locator("#queries tr")).to_have_count(50)
        assert job.count() == 1
        assert "of 60" in page.locator("#place").inner_text()
        pictured(page, tmp_path, "list")
        assert_in_order(page)
        tabbed_to(page, "#on", 120)
        page.keyboard.press("Enter")
        expect(page.locator("#place")).to_contain_text("51–60 of 60")
        page.locator("#find").focus()
        page.keyboard.type("zeta 7")
        page.keyboard.press("Enter")
        expect(page.locator("#queries tr")).to_have_count(1)
        tabbed_to(page, "#queries a")
        page.keyboard.press("Enter")

        expect(page.locator("#text")).to_have_text("alpha beta gamma delta epsilon zeta 7")
        assert page.locator(".chart .line").count() == 25
        assert_in_order(page)
        tabbed_to(page, "#ranking button.passage")
        page.keyboard.press("ArrowDown")
        assert page.locator("#ranking li.on").count() == page.locator(".chart .line.on").count() == 1
        followed = page.locator("#followed").inner_text()
        assert "doc-" in followed
        assert "→" in followed
        assert_in_order(page)
        pictured(page, tmp_path, "query")

        tabbed_to(page, ".chip")
        assert page.locator("#followed").is_hidden()
        page.keyboard.press("Enter")
        expect(page.locator("#window-title")).to_have_text("Round 1, window 1")
        assert page.evaluate("document.activeElement.id") == "window-title"
        tabbed_to(page, "#calls .mention")
        page.keyboard.press("ArrowRight")
        number = page.evaluate("document.activeElement.textContent")
        color = page.evaluate("getComputedStyle(document.activeElement).color")
        page.keyboard.press("Enter")
        row = page.locator("#shown li.on")
        assert row.locator(".number").inner_text() == number
        assert row.locator(".number").evaluate("e => getComputedStyle(e).color") == color
        tabbed_to(page, "#calls summary")
        page.keyboard.press("Enter")
        expect(page.locator("#calls .prompt .words")).to_contain_text("Query: alpha beta gamma")
        pictured(page, tmp_path, "window")
        assert_in_order(page)
        assert page.locator("img:not(.brand img), main script").count() == 0
        page.go_back()
        expect(page.locator("#window")).to_be_hidden()


def test_a_pointer_follows_a_line(browser: Browser, server: Served) -> None:
    with visited(browser, f"{server.url}/runs") as page:
        choose_the_job(page)
        page.click("#queries tr:nth-child(1) a")
        box = page.locator(".chart .line circle").last.bounding_box()
        assert box is not None
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert page.locator(".chart .line.on").count() == 1
        expect(page.locator("#followed")).to_be_visible()
        page.locator(".chip").first.hover()
        assert page.locator(".chart.marking .line.marked").count() > 5


def test_a_long_list_is_shown_in_part_and_then_whole(browser: Browser, server: Served) -> None:
    with visited(browser, f"{server.url}/runs") as page:
        choose_the_job(page)
        page.click("#queries tr:nth-child(2) a")
        expect(page.locator("#ranking li")).to_have_count(26)
        expect(page.locator("#ranking .below")).to_have_text("and 5 more below")
        page.click("#all")
        expect(page.locator("#ranking li")).to_have_count(30)


def test_a_query_opens_a_second_time(browser: Browser, server: Served) -> None:
    with visited(browser, f"{server.url}/runs") as page:
        choose_the_job(page)
        for _ in range(2):
            page.click("#queries tr:nth-child(2) a")
            expect(page.locator("#text")).to_be_visible()
            expect(page.locator("#list")).to_be_hidden()
            page.click("#up")
            expect(page.locator("#queries")).to_be_visible()
            expect(page.locator("#one")).to_be_hidden()


def test_the_oldest_of_many_runs_is_found_and_one_that_is_not_there_is_missed(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "j.sqlite"
    oldest = filled(path, 1)
    with closing(Journal(path)) as journal:
        for number in range(120):
            journal.begin_run({"output": f"later-{number}.trec"})
    with served(None, journal=path) as running, visited(browser, f"{running.url}/runs#run={oldest}") as page:
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
        assert_in_order(page)
        page.click("#silent a")
        expect(chosen).to_contain_text("latest.trec")


def test_words_that_queries_are_not_searched_for_do_not_stay_in_the_box(browser: Browser, server: Served) -> None:
    with visited(browser, f"{server.url}/runs") as page:
        choose_the_job(page)
        page.fill("#find", "zeta 7")
        page.press("#find", "Enter")
        expect(page.locator("#queries tr")).to_have_count(1)
        page.click("#queries a")
        page.click("#up")
        expect(page.locator("#queries tr")).to_have_count(50)
        expect(page.locator("#find")).to_have_value("")


def test_hebrew_runs_from_right_to_left(browser: Browser) -> None:
    with served(Reranker(ThinkingAloud())) as running, visited(browser, f"{running.url}/") as page:
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


def test_a_server_without_a_file_says_so(browser: Browser) -> None:
    with served(Reranker(ScriptedModel([]))) as running, visited(browser, f"{running.url}/runs") as page:
        expect(page.locator("#silent")).to_contain_text("--journal FILE")
        assert_in_order(page)
