"""The pages Judge and Compare over HTTP and from the command: a study goes on, tells nobody whose a ranking is, and
lets nobody in who should not be."""

from __future__ import annotations

import json
import os
import random
import re
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from rank_k.cli import main
from rank_k.errors import InputError
from rank_k.evaluation.preferences import read_judgments
from rank_k.server.config import AccessConfig
from rank_k.server.http_io import RouteGroup
from rank_k.server.judging import JudgingRoutes, PairwiseItems, PreferencesFile
from rank_k.server.report_routes import report_routes
from rank_k.server.web_pages import static_files
from rank_k.types import Passage
from tests.server.test_judging import HEBREW, SYSTEMS, FakePassageStore, make_items
from tests.support.serving import Answer, ServerClient, run_server, start_server
from tests.support.waiting import PATIENCE

pytestmark = pytest.mark.integration

# --- over HTTP ---


@contextmanager
def run_judging_server(
    path: Path,
    access: AccessConfig = AccessConfig(),
    store: FakePassageStore | None = None,
    items: PairwiseItems | None = None,
    other_groups: Sequence[RouteGroup] = (),
) -> Iterator[ServerClient]:
    file = PreferencesFile(path)
    try:
        judging_routes = JudgingRoutes(items or make_items(), store or FakePassageStore(), file).route_group()
        with run_server(None, access=access, route_groups=[judging_routes, *other_groups]) as running:
            yield running
    finally:
        file.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerClient]:
    with run_judging_server(tmp_path / "judgments.jsonl") as running:
        yield running
        assert running.errors == []


def get_state(server: ServerClient, judge: str = "anna") -> Any:
    answer = server.get(f"/judge/question?judge={judge}")
    assert answer.status == 200, answer.json
    return answer.json


def post_choice(server: ServerClient, state: Any, choice: str, **fields: Any) -> Answer:
    return server.post(
        {"judge": state["judge"], "token": state["question"]["token"], "choice": choice, **fields}, "/judge/choice"
    )


def test_judging_routes_complete_study(server: ServerClient, tmp_path: Path) -> None:
    state = get_state(server)
    assert (state["done"], state["total"], state["identical"], state["can_undo"]) == (0, 11, 1, False)
    queries = []
    while state["question"] is not None:
        queries.append(state["question"]["query"])
        answer = post_choice(server, state, ("left", "right", "tie")[len(queries) % 3], seconds=2.04)
        assert answer.status == 200
        state = answer.json
        assert (state["done"], len(read_judgments(tmp_path / "judgments.jsonl"))) == (len(queries), len(queries))
    assert len(set(queries)) == 11
    export = server.get("/judge/judgments.jsonl")
    assert export.headers["content-disposition"] == 'attachment; filename="judgments.jsonl"'
    rows = [json.loads(line) for line in export.raw.decode().splitlines()]
    assert {row["query"] for row in rows} == set(queries)
    assert {(row["depth"], row["seconds"], row["blind"], row["judge"]) for row in rows} == {(3, 2.0, True, "anna")}
    assert {frozenset((row["left"], row["right"])) for row in rows} == {frozenset(SYSTEMS)}
    assert [row["translation"] for row in rows if row["query"] == "what is 1"] == [HEBREW]
    assert main(["evaluate", "--preferences", str(tmp_path / "judgments.jsonl")]) == 0


def test_judgment_rows_record_displayed_sides(server: ServerClient) -> None:
    state = get_state(server)
    left = [passage["text"] for passage in state["question"]["left"]]
    post_choice(server, state, "left")
    row = json.loads(server.get("/judge/judgments.jsonl").raw)
    assert [f"text of {doc_id}" for doc_id in row["left_doc_ids"]] == left
    assert (row["left"] == SYSTEMS[0]) == row["left_doc_ids"][0].endswith("-0")


def test_undo_removes_judgments_in_reverse_order(server: ServerClient) -> None:
    first = get_state(server)
    second = post_choice(server, first, "left").json
    third = post_choice(server, second, "right").json
    state = server.post({"judge": "anna"}, "/judge/undo").json
    assert state["question"] == second["question"]
    assert (state["done"], state["can_undo"]) == (1, True)
    assert server.post({"judge": "anna"}, "/judge/undo").json["question"] == first["question"]
    refused = server.post({"judge": "anna"}, "/judge/undo")
    assert (refused.status, refused.json["message"]) == (409, "there is no judgment to undo")
    assert post_choice(server, first, "tie").json["question"] == second["question"]
    assert post_choice(server, second, "tie").json["question"] == third["question"]
    rows = [json.loads(line) for line in server.get("/judge/judgments.jsonl").raw.splitlines()]
    assert [row["choice"] for row in rows] == ["left", "right", "undone", "undone", "tie", "tie"]


def test_judging_resumes_after_reload_and_restart(tmp_path: Path) -> None:
    path = tmp_path / "judgments.jsonl"
    with run_judging_server(path) as server:
        state = post_choice(server, get_state(server), "left").json
        assert get_state(server) == state
        other_state = get_state(server, "ben")
        assert other_state["done"] == 0
    with run_judging_server(path, items=make_items(reverse_input=True)) as server:
        assert get_state(server) == state
        assert server.post({"judge": "anna"}, "/judge/undo").json["done"] == 0


def test_choice_is_idempotent_and_can_change(server: ServerClient) -> None:
    state = get_state(server)
    next_state = post_choice(server, state, "left").json
    assert post_choice(server, state, "left").json == next_state
    assert post_choice(server, state, "right").json["done"] == 1
    rows = [json.loads(line)["choice"] for line in server.get("/judge/judgments.jsonl").raw.splitlines()]
    assert rows == ["left", "right"]


def test_concurrent_judges_lose_no_judgments(server: ServerClient) -> None:
    def judge_all(judge: str) -> None:
        state = get_state(server, judge)
        while state["question"] is not None:
            state = post_choice(server, state, random.choice(["left", "right", "tie"])).json

    threads = [threading.Thread(target=judge_all, args=(f"judge{number}",)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=PATIENCE)
    rows = [json.loads(line) for line in server.get("/judge/judgments.jsonl").raw.splitlines()]
    assert Counter(row["judge"] for row in rows) == dict.fromkeys((f"judge{number}" for number in range(6)), 11)


def test_judging_responses_hide_system_names(tmp_path: Path) -> None:
    """In no answer to anything, mistakes included; nor ids of documents."""
    with run_judging_server(tmp_path / "judgments.jsonl") as server:
        state = get_state(server)
        next_state = post_choice(server, state, "left")
        answers = [
            next_state,
            server.get("/judge/question?judge=anna"),
            server.get("/judge/question?judge=ben"),
            server.post({"judge": "anna"}, "/judge/undo"),
            post_choice(server, state, "nothing"),
            post_choice(server, {**state, "judge": ""}, "left"),
            server.post({"judge": "anna", "token": "other", "choice": "left"}, "/judge/choice"),
            server.post([], "/judge/choice"),
            server.get("/judge/choice"),
            server.get("/judge/" + SYSTEMS[0][:3]),
            *map(server.get, static_files()),
            *map(server.get, ("/page/rooms.json", "/health", "/metrics", "/openapi.json", "/v1/models")),
        ]
        for answer in answers:
            output = answer.raw.decode() + str(answer.headers)
            for name in SYSTEMS:
                assert name not in output
                assert name.partition(".")[0] not in output
            assert str(tmp_path) not in output
        assert all(name in server.get("/judge/judgments.jsonl").raw.decode() for name in SYSTEMS)


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        ({"judge": ""}, 422, "judge"),
        ({"judge": 7}, 422, "judge"),
        ({"judge": "a" * 101}, 422, "judge"),
        ({"judge": "a\u0000b"}, 422, "judge"),
        ({"choice": "undone"}, 422, "choice"),
        ({"choice": None}, 422, "choice"),
        ({"choice": ["left"]}, 422, "choice"),
        ({"token": "0" * 32}, 409, "token"),
        ({"token": None}, 409, "token"),
        ({"token": ["left"]}, 409, "token"),
        ({"seconds": -1}, 422, "seconds"),
        ({"seconds": "long"}, 422, "seconds"),
        ({"seconds": True}, 422, "seconds"),
    ],
)
def test_choice_rejects_invalid_fields(server: ServerClient, change: dict[str, Any], status: int, field: str) -> None:
    state = get_state(server)
    body = {"judge": "anna", "token": state["question"]["token"], "choice": "left"}
    answer = server.post({**body, **change}, "/judge/choice")
    assert (answer.status, answer.json.get("field")) == (status, field)
    assert server.get("/judge/judgments.jsonl").raw == b""


def test_judging_rejects_other_origins_and_content_types(server: ServerClient) -> None:
    state = get_state(server)
    body = json.dumps({"judge": "anna", "token": state["question"]["token"], "choice": "left"}).encode()
    for path in ("/judge/choice", "/judge/undo"):
        assert server.post(body, path, Origin="https://evil.example").status == 403
        assert server.post(body, path, Host="evil.example").status == 421
        assert server.send("POST", path, body, Content_Type="text/plain").status == 415
        assert server.send("POST", path, body, Content_Type="application/x-www-form-urlencoded").status == 415
    assert server.get("/judge/judgments.jsonl", Origin="https://evil.example").status == 403
    assert server.get("/judge/judgments.jsonl").raw == b""


def test_judging_requires_client_key(tmp_path: Path) -> None:
    key = "sk-judges-0123456789"
    with run_judging_server(tmp_path / "judgments.jsonl", AccessConfig(keys=(key,))) as server:
        for path in ("/judge/question?judge=anna", "/judge/judgments.jsonl", "/page/rooms.json"):
            assert server.get(path).status == 401
            assert server.get(path, Authorization=f"Bearer {key}").status == 200
        assert server.post({"judge": "anna"}, "/judge/undo").status == 401
        assert server.get("/judge").status == 200, "the page itself tells nothing"


def test_open_server_denies_export_and_report(tmp_path: Path) -> None:
    """Judges may come from elsewhere without a key; the export, and the report, are for who has one."""
    file = PreferencesFile(tmp_path / "judgments.jsonl")
    route_groups: list[RouteGroup] = [
        JudgingRoutes(make_items(), FakePassageStore(), file).route_group(),
        report_routes(lambda: "secret"),
    ]
    with run_server(None, access=AccessConfig(host="0.0.0.0"), route_groups=route_groups) as server:
        assert post_choice(server, get_state(server), "left").status == 200
        for path in ("/judge/judgments.jsonl", "/compare/report"):
            answer = server.get(path)
            assert answer.status == 403
            assert "secret" not in answer.raw.decode()
    file.close()


def test_choice_reports_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with run_judging_server(tmp_path / "judgments.jsonl") as server:
        state = get_state(server)

        def fail_with_full_disk(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", fail_with_full_disk)
        answer = post_choice(server, state, "left")
        assert (answer.status, get_state(server)["done"]) == (507, 0)
        monkeypatch.undo()
        assert post_choice(server, state, "left").json["done"] == 1
        assert "No space left" in str(server.errors[0])
        assert str(tmp_path) not in answer.raw.decode()


def test_missing_passage_is_reported_to_operator_only(tmp_path: Path) -> None:
    class MissingPassageStore(FakePassageStore):
        def get(self, doc_id: str, query_id: str | None = None) -> Passage:
            raise InputError(f"document {doc_id} is not in secret.jsonl")

    with run_judging_server(tmp_path / "judgments.jsonl", store=MissingPassageStore()) as server:
        answer = server.get("/judge/question?judge=anna")
        assert answer.status == 500
        assert "secret" not in answer.raw.decode()
        assert "secret.jsonl" in str(server.errors[0])


def test_judging_restores_evicted_sessions(server: ServerClient) -> None:
    state = post_choice(server, get_state(server), "left").json
    for number in range(101):
        get_state(server, f"passer-by{number}")
    assert get_state(server) == state


def test_judge_css_does_not_overlap_page_css() -> None:
    """The pages' own sheet is loaded too: what both name would be laid out by both."""
    folder = files("rank_k.server") / "web"
    page_selectors, judge_selectors = (
        set(re.findall(r"[.#][a-z][\w-]*(?=[^{}]*\{)", (folder / name).read_text()))
        for name in ("page.css", "judge.css")
    )
    assert {".headline", "#asked"} <= judge_selectors
    assert judge_selectors & page_selectors == {".card"}, "which is meant"
    ids = re.findall(r'id="([^"]*)"', (folder / "judge.html").read_text())
    assert not {f"#{name}" for name in ids} & page_selectors


# --- the report ---


def test_report_is_rendered_once_for_concurrent_requests() -> None:
    renders = []
    started, finish = threading.Event(), threading.Event()

    def render_page() -> str:
        renders.append(1)
        started.set()
        assert finish.wait(PATIENCE)
        return "<!doctype html><title>r</title>"

    key = "sk-compare-0123456789"
    report = report_routes(render_page)
    with run_server(None, access=AccessConfig(keys=(key,)), route_groups=[report]) as server:
        assert server.get("/compare/report").status == 401
        answers: list[Answer] = []
        waiting = [
            threading.Thread(
                target=lambda: answers.append(server.get("/compare/report", Authorization=f"Bearer {key}"))
            )
            for _ in range(3)
        ]
        for thread in waiting:
            thread.start()
        assert started.wait(PATIENCE)
        assert server.get("/health").status == 200
        assert not answers, "others are served meanwhile"
        finish.set()
        for thread in waiting:
            thread.join(timeout=PATIENCE)
        (path,) = {answer.json["path"] for answer in answers}
        assert renders == [1]
        page = server.get(path)
        assert (page.status, page.raw) == (200, b"<!doctype html><title>r</title>")
        assert page.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in page.headers["content-security-policy"]
        assert server.get("/compare/" + "x" * 32, Authorization=f"Bearer {key}").status == 404
        assert server.get(path[:-1]).status == 401
        assert path.encode() not in server.get("/metrics", Authorization=f"Bearer {key}").raw


def test_report_is_rendered_again_after_failure() -> None:
    results: list[str | Exception] = [InputError("run.trec is secret"), "page"]

    def render_page() -> str:
        result = results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    with run_server(None, route_groups=[report_routes(render_page)]) as server:
        refused = server.get("/compare/report")
        assert refused.status == 500
        assert "secret" not in refused.raw.decode()
        assert "run.trec is secret" in str(server.errors[0])
        assert server.get(server.get("/compare/report").json["path"]).raw == b"page"


# --- the command ---


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two runs, queries, documents and judgments."""
    monkeypatch.chdir(tmp_path)
    write: dict[str, list[str]] = defaultdict(list)
    for q in range(6):
        write["queries.jsonl"].append(json.dumps({"_id": f"q{q}", "text": f"query {q}", "ht": f"вопрос {q}"}))
        write["qrels"].append(f"q{q} 0 q{q}-0 1")
        for n in range(4):
            write["corpus.jsonl"].append(json.dumps({"_id": f"q{q}-{n}", "text": f"passage {n} of {q}"}))
            write["good.trec"].append(f"q{q} Q0 q{q}-{n} {n + 1} {10 - n} t")
            write["bad.trec"].append(f"q{q} Q0 q{q}-{n} {4 - n} {n} t")
    for name, lines in write.items():
        Path(name).write_text("\n".join(lines) + "\n")
    return tmp_path


UNREACHABLE_MODEL_OPTIONS = ("--server", "http://127.0.0.1:9/v1", "--model", "m")
FILES = ("--queries", "queries.jsonl", "--documents", "corpus.jsonl")


def test_serve_compare_serves_judge_and_compare_pages(folder: Path) -> None:
    options = ("--compare", "bad.trec", "good.trec", *FILES, "--qrels", "qrels", "--preferences-file", "said.jsonl")
    with start_server(*UNREACHABLE_MODEL_OPTIONS, *options, "--judging-depth", "2") as running:
        server = running.served
        assert server.get("/page/rooms.json").json == ["compare", "judge"]
        report = server.get(server.get("/compare/report").json["path"]).raw.decode()
        state = get_state(server)
        assert state["total"] == 6
        assert state["question"]["translation"].startswith("вопрос ")
        assert len(state["question"]["left"]) == 2
        post_choice(server, state, "left")
    rows = read_judgments(folder / "said.jsonl")
    assert [(row.pair, row.depth) for row in rows] == [(("bad.trec", "good.trec"), 2)]
    report_path = folder / "made.html"
    same_runs = ("bad.trec", "good.trec", "--baseline", "bad.trec", "--qrels", "qrels", "--queries", "queries.jsonl")
    assert main(["evaluate", *same_runs, "--report", str(report_path)]) == 0
    assert '<a href="/compare" aria-current="page">Compare</a>' in report
    expected_report = report_path.read_text().partition("<header>")[2].partition("<dt>Command</dt>")[0]
    assert expected_report == report.partition("<header>")[2].partition("<dt>Command</dt>")[0], "one implementation"
    assert "rank-k evaluate bad.trec good.trec --qrels qrels --baseline bad.trec" in report


def test_serve_judging_needs_no_model(folder: Path) -> None:
    with start_server("--compare", "bad.trec", "good.trec", *FILES, "--preferences-file", "said.jsonl") as running:
        assert running.served.get("/page/rooms.json").json == ["judge"]
        assert post_choice(running.served, get_state(running.served), "tie").json["done"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--compare", "good.trec", "bad.trec"], "cannot be compared without judgments; give --qrels"),
        (["--qrels", "qrels"], "--qrels has no effect without runs"),
        (["--preferences-file", "said.jsonl"], "--preferences-file has no effect without runs"),
        (
            ["--compare", "good.trec", "--preferences-file", "said.jsonl", *FILES],
            "a single run cannot be judged",
        ),
        (["--compare", "good.trec", "bad.trec", "--preferences-file", "said.jsonl"], "--queries is missing"),
        (["--compare", "good.trec", "bad.trec", "--preferences-file", "qrels", *FILES], "qrels"),
        (
            ["--compare", "good.trec", "bad.trec", "--preferences-file", "corpus.jsonl", *FILES],
            "which this command also uses",
        ),
        (
            ["--compare", "good.trec", "./good.trec", "--preferences-file", "said.jsonl", *FILES],
            "contains good.trec twice",
        ),
        (["--compare", "good.trec", "no.trec", "--preferences-file", "said.jsonl", *FILES], "no.trec"),
        (["--compare", "good.trec", "bad.trec", "--qrels", "nowhere"], "nowhere"),
        (["--compare", "good.trec", "no.trec", "--qrels", "qrels"], "no.trec: no such file"),
        (["--compare", "good.trec", ".", "--qrels", "qrels"], ".: a directory"),
        (["--compare", "good.trec", "bad.trec", "good.trec", "--qrels", "qrels"], "contains good.trec twice"),
        (["--compare", "good.trec", "--qrels", "qrels", "--queries", "nowhere"], "nowhere"),
    ],
)
def test_serve_reports_option_errors_before_serving(
    folder: Path, capfd: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert main(["serve", *UNREACHABLE_MODEL_OPTIONS, "--port", "0", *options]) == 2
    err = capfd.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert not (folder / "said.jsonl").exists()


def test_serve_reports_missing_documents_at_start(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    lines = Path("corpus.jsonl").read_text().splitlines()
    Path("corpus.jsonl").write_text("\n".join(lines[1:]) + "\n")
    options = ("--compare", "bad.trec", "good.trec", *FILES, "--preferences-file", "said.jsonl")
    assert main(["serve", *UNREACHABLE_MODEL_OPTIONS, "--port", "0", *options]) == 2
    assert "document q0-0 of query q0 is not in corpus.jsonl" in capfd.readouterr().err
