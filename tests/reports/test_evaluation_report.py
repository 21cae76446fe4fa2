"""The report: every figure in it, every text as text, nothing in it that asks, runs or styles from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from rank_k.evaluation.run_comparison import RunComparison, compare_runs
from rank_k.evaluation.run_costs import QueryCost, RunCost
from rank_k.reports.evaluation_report import ReportOrigin, render_report
from rank_k.reports.html import format_integer, format_p_value, format_share, format_signed, security_policy, stylesheet
from rank_k.types import Candidate, Usage

HOSTILE = "<img src=x onerror=alert(1)>"
HEBREW = "מה גורם לגאות ושפל?"
QUERIES = [HOSTILE, "\udcff\x1b[31m", "q & a", *(f"q{number}" for number in range(40))]
TEXTS = {HOSTILE: "</td><script>alert(2)</script>", "q & a": HEBREW, "q1": "what moves the tides" * 10}
MADE = ReportOrigin("rank-k evaluate --qrels 'my \"qrels\"' a b <c>", "my qrels")
RUNS = ("first/stage.trec", "sliding.trec", f"blocks {HOSTILE} with a long name indeed, of a strategy.trec")


def assessed(queries: list[str] | None = None, baseline: str = RUNS[0], seed: int = 1) -> RunComparison:
    """Three runs, each better than the one before; the first has no journal."""
    queries = QUERIES if queries is None else queries
    rng = random.Random(seed)
    qrels = {q: {f"d{n}": rng.choice([0, 0, 1, 2]) for n in range(12)} | {"d12": 3} for q in queries}
    runs = {}
    for system_quality, name in enumerate(RUNS):
        runs[name] = {
            q: [
                Candidate(doc_id, system_quality * 0.4 * (grades.get(doc_id) or 0) + 2 * rng.random())
                for doc_id in (*grades, "unjudged")
            ]
            for q, grades in qrels.items()
        }
    costs: dict[str, RunCost | None] = {}
    for name, rounds, calls, money in ((RUNS[1], 9, 9, 1.25), (RUNS[2], 3, 7, None)):
        cost = RunCost(journal=Path(f"{name.partition(' ')[0]}.journal.sqlite"), model="hltcoe/Rank-K-32B", money=money)
        costs[name] = cost
        cost.add(
            QueryCost(
                calls,
                usage=Usage(900 * calls, 4000 * calls, 3800 * calls),
                model_seconds=31.5 * calls,
                query_id=q,
                unranked_windows=1,
                seconds_by_round=[[31.5]] * rounds,
            )
            for q in queries[1:]
        )
    return compare_runs(qrels, runs, ["nDCG@10", "AP", "Judged@10"], baseline=baseline, costs=costs)


@pytest.fixture(scope="module")
def comparison() -> RunComparison:
    return assessed()


@pytest.fixture(scope="module")
def page(comparison: RunComparison) -> str:
    return render_report(comparison, MADE, TEXTS)


class PageParser(HTMLParser):
    """What a browser would make of the page: elements with their attributes, and the text of each kind."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "br", "link", "source", "img"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        if self._open:
            self.text.setdefault(self._open[-1], []).append(data)

    def find_all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_render_report_loads_and_executes_nothing(page: str) -> None:
    parser = PageParser(page)
    allowed_tags = (
        "html head meta title style body header main section h1 h2 p ul li strong bdi span small div table caption"
    )
    allowed_tags += " thead tbody tr th td code figure figcaption details summary dl dt dd"
    allowed_tags += " picture source img"
    assert {tag for tag, _ in parser.elements} <= set(allowed_tags.split())
    for tag, attributes in parser.elements:
        assert not {name for name in attributes if name.startswith("on") or name in ("style", "action", "href", "data")}
        for name in ("src", "srcset"):
            assert attributes.get(name, "data:image/svg+xml;base64,").startswith("data:image/svg+xml;base64,"), tag
    assert "url(" not in stylesheet()
    assert "@import" not in stylesheet()
    assert "://" not in page


def test_security_policy_allows_only_own_stylesheet(page: str) -> None:
    [style] = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    [policy] = [meta["content"] for meta in PageParser(page).find_all("meta") if meta.get("http-equiv")]
    assert policy == security_policy()
    assert policy.split("; ") == [
        "default-src 'none'",
        f"style-src 'sha256-{digest}'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
    ]


def test_render_report_escapes_run_and_query_texts(page: str) -> None:
    parser = PageParser(page)
    page.encode()
    assert HOSTILE in parser.text["bdi"], "as an id"
    assert RUNS[2] in parser.text["bdi"], "in a name"
    assert "q & a" in parser.text["bdi"]
    assert "\\udcff\\x1b[31m" in parser.text["bdi"]
    assert any(HOSTILE in image["alt"] for image in parser.find_all("img")), "in a figure"
    assert MADE.command in parser.text["code"]


def test_render_report_sets_automatic_text_direction(comparison: RunComparison) -> None:
    worst_query_id = comparison.largest_losses(comparison.compared_runs[0])[0].query_id
    page = render_report(comparison, MADE, {worst_query_id: HEBREW, **TEXTS})
    assert f'<td class="text" dir="auto">{HEBREW}</td>' in page


def test_render_report_contains_every_number_of_the_comparison(comparison: RunComparison, page: str) -> None:
    cells = [cell.strip() for cell in PageParser(page).text["td"]]
    for run in comparison.runs:
        for measure in comparison.measures:
            assert f"{run.evaluation.means[measure]:.4f}" in cells
            low, high = run.intervals[measure]
            assert f"<small>{low:.4f} – {high:.4f}</small>" in page
    assert comparison.comparisons == 4
    assert "all 4 comparisons" in page
    for run in comparison.compared_runs:
        for paired_comparison in run.comparisons.values():
            assert format_signed(paired_comparison.paired.mean) in cells
            assert (
                f"{format_signed(paired_comparison.paired.low)} to {format_signed(paired_comparison.paired.high)}"
                in cells
            )
            for p in (paired_comparison.randomization_p, paired_comparison.t_p):
                assert (
                    (format_p_value(p) in PageParser(page).text["strong"])
                    if p <= 0.05
                    else (format_p_value(p) in cells)
                )
        for change in comparison.largest_losses(run):
            assert format_signed(change.difference) in cells
            command = run.cost.trace_command(change.query_id) if run.cost else None
            if command:
                assert command in [code.replace("\\udcff\\x1b", "\udcff\x1b") for code in PageParser(page).text["code"]]
    for run in comparison.runs:
        assert format_share(run.unjudged) in cells
        if run.cost:
            assert {
                format_integer(run.cost.calls),
                format_integer(run.cost.usage.prompt_tokens),
                format_integer(run.cost.model_seconds),
            } <= set(cells)
    assert "1.2500" in cells
    assert "–" in cells, "no price, no cost"
    images = PageParser(page).find_all("img")
    assert len(images) == 2 + 3, "gains of two runs; quality against tokens, rounds and seconds"


def test_render_report_claims_only_significant_differences(comparison: RunComparison, page: str) -> None:
    findings = page.split('<ul class="findings">')[1].split("</ul>")[0]
    items = [" ".join(item.split()) for item in findings.split("<li")[1:]]
    assert len(items) == 2
    for item, run in zip(items, comparison.compared_runs, strict=True):
        paired_comparison = run.comparisons["nDCG@10"]
        is_significant = paired_comparison.randomization_p <= 0.05
        assert ("is better than the baseline" in item) == (is_significant and paired_comparison.paired.mean > 0)
        assert ("does not differ significantly" in item) == (not is_significant)
    inconclusive_page = render_report(assessed(QUERIES[:4], seed=3), MADE)
    assert "does not differ significantly" in inconclusive_page
    assert "better than the baseline" not in inconclusive_page
    reversed_page = render_report(assessed(baseline=RUNS[2]), MADE)
    assert "is worse than the baseline" in reversed_page


def test_render_report_is_accessible(page: str) -> None:
    parser = PageParser(page)
    ids = [attributes["id"] for _, attributes in parser.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    label_ids = [name for _, attributes in parser.elements for name in attributes.get("aria-labelledby", "").split()]
    assert set(label_ids) <= set(ids)
    assert len(parser.find_all("table")) == len(parser.find_all("caption"))
    assert all("scope" in header_cell for header_cell in parser.find_all("th"))
    alternatives = [image["alt"] for image in parser.find_all("img")]
    assert all(len(alternative) > 60 for alternative in alternatives)
    assert len(set(alternatives)) == len(alternatives) == len(parser.find_all("figure"))
    regions = [attributes for attributes in parser.find_all("div") if attributes["class"] == "scroll"]
    assert len(regions) == len(parser.find_all("table"))
    assert all(region["tabindex"] == "0" and region["aria-labelledby"] for region in regions)
    assert parser.find_all("html") == [{"lang": "en"}]


def test_render_report_is_deterministic(page: str) -> None:
    assert render_report(assessed(), MADE, TEXTS) == page


def test_render_report_omits_baseline_and_cost_sections_without_data() -> None:
    qrels = {"q": {"a": 1}}
    full_page = render_report(compare_runs(qrels, {"one": {"q": [Candidate("a", 1.0)]}}, ["AP"]), MADE)
    page = full_page.partition("</style>")[2]
    assert "<h1>Evaluation of one</h1>" in page
    assert "baseline" not in page
    assert "Cost and quality" not in page
    assert "<img" not in page


def test_render_report_states_that_no_query_lost() -> None:
    qrels = {"q": {"a": 1}, "r": {"a": 1}}
    worst, best = ({q: [Candidate(d, -n) for n, d in enumerate(ids)] for q in qrels} for ids in ("ba", "ab"))
    page = render_report(
        compare_runs(qrels, {"worst": worst, "best": best, "same": worst}, ["RR"], baseline="worst"), MADE
    )
    assert "<bdi>best</bdi>: no query has a lower RR." in page
    assert "<bdi>same</bdi>: no query has a lower RR." in page


def test_format_functions_write_numbers_consistently() -> None:
    assert [format_signed(number) for number in (0.1, -0.1, -0.00001, 0.0)] == [
        "+0.1000",
        "−0.1000",
        "0.0000",
        "0.0000",
    ]
    assert [format_p_value(number) for number in (0.00009, 0.0001, 1.0)] == ["< 0.0001", "0.0001", "1.0000"]
    assert [format_integer(number) for number in (3, 2.54, 1234567, 99.96, 0.0)] == [
        "3",
        "2.5",
        "1,234,567",
        "100.0",
        "0",
    ]
    assert (format_share(None), format_share(0.125), format_share(0.125, 0)) == ("–", "12.5%", "12%")
