"""What the page shows of a journal: read out of the file as it is, by whom it may be, and never written."""

from __future__ import annotations

import hashlib
import re
from contextlib import closing
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.errors import JournalError
from rank_k.journal import Journal, QueryRecord
from rank_k.server import journal_viewer
from rank_k.server.config import AccessConfig
from rank_k.server.journal_viewer import QueryParameters, WindowParameters
from rank_k.types import Candidate, Passage, Query, Request
from rank_k.window.prompt import builtin_template, extract_passages
from tests.fakes.likelihood_model import make_likelihood_model
from tests.fakes.reasoning_model import ReasoningModel
from tests.support.serving import Answer, ServerClient, run_server

pytestmark = pytest.mark.integration

HOSTILE = "<img src=x onerror=alert(1)> [7] </script>"
KEY = "sk-runs-0123456789"
DOCS = [f"doc-{n:02d}" for n in range(30)]


def make_passages() -> dict[str, Passage]:
    """The later, the more words of the query."""
    words = "alpha beta gamma delta epsilon zeta".split()
    return {
        doc_id: Passage(doc_id, f"{HOSTILE} number {n} {' '.join(words[: n // 5])}") for n, doc_id in enumerate(DOCS)
    }


def create_journal(path: Path, queries: int = 2, **options: Any) -> str:
    """A journal with one run, whose name is returned."""
    queries_by_id = {f"q{n}": Query(f"q{n}", f"alpha beta gamma delta epsilon zeta {n}") for n in range(queries)}
    run = {query_id: [Candidate(doc_id, 1 / (i + 1)) for i, doc_id in enumerate(DOCS)] for query_id in queries_by_id}
    with Reranker(ReasoningModel(), journal=path, **options) as reranker:
        name = reranker.journal.begin_run({"output": "out.trec", "strategy": "sliding"})
        list(reranker.rerank(run, queries_by_id, make_passages(), run_name=name))
    return name


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "j.sqlite"


def get_view(server: ServerClient, what: str, key: str | None = None, **parameters: Any) -> Answer:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return server.get(f"/journal/{what}?{urlencode(parameters)}", **headers)


def view_query(journal: Journal, record: QueryRecord) -> dict[str, Any]:
    return journal_viewer.query(journal, QueryParameters(run=record.run, position=record.position))


# --- a job's run ---


def test_journal_viewer_show_run_down_to_calls(path: Path) -> None:
    name = create_journal(path)
    with run_server(Reranker(ReasoningModel(), journal=path)) as server:
        [run] = get_view(server, "runs").json["runs"]
        assert (run["run"], run["settings"]["output"], run["queries"]) == (name, "out.trec", 2)

        queries = get_view(server, "queries", run=name).json
        assert queries["total"] == 2
        first = queries["queries"][0]
        assert (first["query_id"], first["text"][:5], first["finished"]) == ("q0", "alpha", True)
        assert (first["rounds"], first["windows"], first["passages"]) == (2, 2, 30)

        query = get_view(server, "query", run=name, position=0).json
        assert [p["doc_id"] for p in query["passages"]] == DOCS
        assert all(f"number {n} " in p["text"] + " " for n, p in enumerate(query["passages"]))
        assert query["passages"][0]["text"].startswith("<img src=x onerror=alert(1)> (7)"), "as the model saw it"
        start, middle = query["rounds"]
        assert start == [[n] for n in range(30)]
        assert [window["shown"] for window in query["windows"]] == [
            list(range(10, 30)),
            [n for t in middle for n in t][:20],
        ]
        assert sorted(n for tier in query["ranking"] for n in tier) == list(range(30))
        assert any(len(tier) > 1 for tier in query["ranking"]), "ties are kept"
        assert query["windows"][0]["orders"][0]["ranked"]

        window = get_view(server, "window", run=name, position=0, round=1, window=0).json
        [call] = window["calls"]
        assert call["purpose"] == "ask"
        assert call["reasoning"].startswith("The query is")
        assert HOSTILE.replace("[7]", "(7)").split(" </")[0] in call["messages"][0]["content"]
        assert call["shown"] == list(range(20))
        by_number = extract_passages(call["messages"][0]["content"])
        assert [p["text"] for p in window["passages"]] == list(by_number)


def test_window_view_separates_inline_reasoning(path: Path) -> None:
    with Reranker(ScriptedModel(["<think>Passage [2] fits.</think>[2] > [1]"]), journal=path) as reranker:
        reranker.rank("first", ["a", "b"])
        run = reranker.journal.last_run()
    with run_server(Reranker(ScriptedModel([]), journal=path)) as server:
        [call] = get_view(server, "window", run=run, position=0, round=0, window=0).json["calls"]
    assert (call["reasoning"], call["text"]) == ("Passage [2] fits.", "[2] > [1]")


def test_queries_view_paginates_and_searches(path: Path) -> None:
    with Reranker(ScriptedModel([]), journal=path) as reranker:
        reranker.rank("first", ["alone"])
        run = reranker.journal.last_run()
        for n in range(1, 3000):
            reranker.journal.store_query(run, n, f"id-{n:04d}", "100% sure" if n == 1234 else f"what of {n}")
    with run_server(Reranker(ScriptedModel([]), journal=path)) as server:
        page = get_view(server, "queries", run=run, offset=2950).json
        assert (page["total"], len(page["queries"]), page["queries"][-1]["query_id"]) == (
            3000,
            journal_viewer.PAGE_SIZE,
            "id-2999",
        )
        assert len(get_view(server, "queries", run=run).json["queries"]) == journal_viewer.PAGE_SIZE
        assert [q["query_id"] for q in get_view(server, "queries", find="100% SURE").json["queries"]] == ["id-1234"]
        assert [q["position"] for q in get_view(server, "queries", run=run, find="ID-0077").json["queries"]] == [77]
        assert get_view(server, "queries", find="nothing like it").json["total"] == 0
        assert get_view(server, "queries", run=run, offset=10**9).json["queries"] == []
        newest = [
            get_view(server, "queries", run=run, newest_first="true", offset=n).json for n in (0, 50, 2990, 10**9)
        ]
        assert [query["position"] for query in newest[0]["queries"]] == [*range(2999, 2949, -1)]
        assert newest[1]["queries"][0]["position"] == 2949
        assert [query["position"] for query in newest[2]["queries"]] == [*range(9, -1, -1)]
        assert newest[3]["queries"] == []


def test_query_view_shows_unfinished_ranking(path: Path) -> None:
    """Two of three rounds are answered when the third is asked."""
    views: list[Any] = []

    def answers(request: Request) -> str:
        if len(model.history) == 3:
            with closing(Journal(path, read_only=True)) as journal:
                [record] = journal.find_queries()[1]
                views.append(view_query(journal, record))
        return " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))

    model = ScriptedModel(answers)
    with Reranker(model, journal=path) as reranker:
        reranker.rank("q", [f"text {n}" for n in range(40)])
    [view] = views
    assert (view["finished"], view["ranking"], len(view["rounds"]), len(view["windows"])) == (False, None, 3, 2)


def test_window_view_shows_each_sample_order(path: Path) -> None:
    name = create_journal(path, 1, samples=3, strategy="single")
    with closing(Journal(path, read_only=True)) as journal:
        view = journal_viewer.window(journal, WindowParameters(run=name, position=0, round=0, window=0))
    shown_places = [call["shown"] for call in view["calls"]]
    assert len(shown_places) >= 2
    assert shown_places[0] != shown_places[1]
    for call in view["calls"]:
        numbered = extract_passages(call["messages"][0]["content"])
        assert [view["passages"][place]["text"] for place in call["shown"]] == list(numbered)


def test_window_view_pairs_likelihoods_with_passages(path: Path) -> None:
    model = make_likelihood_model()
    with Reranker(model, method="likelihood", journal=path) as reranker:
        reranker.rank("q", ["one", "three", "eleven"])
    with closing(Journal(path, read_only=True)) as journal:
        [record] = journal.find_queries()[1]
        parameters = WindowParameters(run=record.run, position=record.position, round=0, window=0)
        view = journal_viewer.window(journal, parameters)
        assert [p["text"] for p in view_query(journal, record)["passages"]] == ["one", "three", "eleven"]
    assert [p["text"] for p in view["passages"]] == ["one", "three", "eleven"]
    assert [call["shown"] for call in view["calls"]] == [[0], [1], [2]]
    scores = [call["likelihood"] for call in view["calls"]]
    assert scores == sorted(scores)


# --- what is served ---


def test_served_requests_form_one_run(path: Path) -> None:
    with run_server(Reranker(ReasoningModel(), journal=path)) as server:
        ids = [server.rerank(["a", "b", f"c {n}"], query=f"question {n}").json["id"] for n in range(3)]
        [run] = get_view(server, "runs").json["runs"]
        assert run["settings"]["made"] == "one query at a time"
        assert [q["query_id"] for q in get_view(server, "queries", run=run["run"]).json["queries"]] == ids
        [match] = get_view(server, "queries", find=ids[1]).json["queries"]
        assert (match["position"], match["text"]) == (1, "question 1")
        query = get_view(server, "query", run=run["run"], position=1).json
        assert [p["text"] for p in query["passages"]] == ["a", "b", "c 1"]


def test_repeated_request_is_new_query_without_call(path: Path) -> None:
    model = ReasoningModel()
    with run_server(Reranker(model, journal=path)) as server:
        for _ in range(2):
            server.rerank(["a", "b"], query="twice")
        assert len(model.history) == 1
        view = get_view(server, "queries").json
        assert [q["windows"] for q in view["queries"]] == [1, 1]


# --- who may look, and what cannot happen ---


def test_journal_viewer_do_not_modify_file(path: Path) -> None:
    name = create_journal(path)
    path.with_name("j.sqlite-wal").unlink(missing_ok=True)
    digest_before = hashlib.sha256(path.read_bytes()).hexdigest()
    with run_server(None, journal=path) as server:
        for what in ("runs", "queries", "query", "window"):
            assert get_view(server, what, run=name, position=0, round=0, window=0).status == 200
    assert hashlib.sha256(path.read_bytes()).hexdigest() == digest_before


def test_read_only_journal_rejects_writes(path: Path) -> None:
    create_journal(path, 1)
    with closing(Journal(path, read_only=True)) as journal, pytest.raises(JournalError, match="readonly"):
        journal.store_query("r", 0, "q", "text")


@pytest.mark.parametrize("what", ["runs", "queries", "query", "window"])
def test_journal_viewer_require_client_key(path: Path, what: str) -> None:
    name = create_journal(path, 1)
    parameters: dict[str, Any] = {"run": name, "position": 0, "round": 0, "window": 0}
    with run_server(Reranker(ReasoningModel(), journal=path), access=AccessConfig(keys=(KEY,))) as server:
        assert get_view(server, what, **parameters).status == 401
        assert get_view(server, what, key="sk-wrong", **parameters).status == 401
        assert get_view(server, what, key=KEY, **parameters).status == 200
        assert server.get(f"/journal/{what}?key={KEY}").status == 401, "not in the address"
        assert server.get("/journal/runs", Origin="https://evil.example").status == 403
        assert server.get("/journal/runs", Host="evil.example").status == 421


def test_journal_viewer_are_denied_on_open_server(path: Path) -> None:
    create_journal(path, 1)
    with run_server(Reranker(ReasoningModel(), journal=path), access=AccessConfig(host="0.0.0.0")) as server:
        client = ServerClient(server.url.replace("0.0.0.0", "127.0.0.1"))
        assert client.rerank(["a", "b"]).status == 200
        assert get_view(client, "runs").status == 403


@pytest.mark.parametrize(
    ("what", "parameters", "status", "field"),
    [
        ("query", {}, 422, "position"),
        ("query", {"position": "-1"}, 422, "position"),
        ("query", {"position": "1e3"}, 422, "position"),
        ("query", {"position": "9" * 5000}, 422, "position"),
        ("query", {"position": 0}, 404, "position"),
        ("query", {"position": 99, "run": "nobody"}, 404, "position"),
        ("queries", {"offset": "x"}, 422, "offset"),
        ("window", {"position": 0, "run": "RUN", "round": 9, "window": 0}, 404, "window"),
        ("window", {"position": 0, "run": "RUN"}, 422, "round"),
    ],
)
def test_journal_viewer_report_invalid_parameters(
    path: Path, what: str, parameters: dict[str, Any], status: int, field: str
) -> None:
    name = create_journal(path, 1)
    query_parameters = {key: name if value == "RUN" else value for key, value in parameters.items()}
    with run_server(Reranker(ReasoningModel(), journal=path)) as server:
        answer = get_view(server, what, **query_parameters)
        assert (answer.status, answer.json["field"]) == (status, field)


def test_journal_viewer_without_file_are_empty() -> None:
    with run_server(Reranker(ReasoningModel())) as server:
        assert get_view(server, "runs").json["journal"] is None
        assert get_view(server, "queries").json["total"] == 0
        assert get_view(server, "query", position=0).status == 404


# --- older files, other templates, ids that are no text ---


@pytest.mark.parametrize("template", ["listwise", "compact"])
def test_passages_in_reads_prompts(template: str) -> None:
    passages = ["plain", "of [brackets] and (3) numbers", "ends [with", "x" * 1000]
    [message] = builtin_template(template).messages("what of [1] this", passages)
    assert extract_passages(message.content) == tuple(passages)


def test_query_view_preserves_lone_surrogates(path: Path) -> None:
    odd = "q\udcff"
    with Reranker(ScriptedModel(lambda request: "[2] > [1]"), journal=path) as reranker:
        run = reranker.journal.begin_run({"output": "x"})
        list(
            reranker.rerank(
                {odd: [Candidate("a", 1), Candidate("b", 0.5)]},
                {odd: Query(odd, "odd \ud800")},
                {"a": Passage("a", "A"), "b": Passage("b", "B")},
                run_name=run,
            )
        )
    with run_server(None, journal=path) as server:
        [query] = get_view(server, "queries", run=run).json["queries"]
        assert (query["query_id"], query["text"]) == (odd, "odd \ud800")
        assert get_view(server, "query", run=run, position=0).json["ranking"] == [[1], [0]]


def test_window_js_describes_every_repair() -> None:
    root = files("rank_k")
    kinds = set()
    sources = [file for file in (root / "window").iterdir() if file.name.endswith(".py")]
    for file in (*sources, root / "engine.py"):
        source = file.read_text(encoding="utf-8")
        kinds |= set(re.findall(r'repairs\["(\w+)"\]', source)) | set(re.findall(r"Counter\((\w+)=1\)", source))
    words = (root / "server" / "web" / "window.js").read_text(encoding="utf-8")
    assert len(kinds) > 12
    assert [kind for kind in sorted(kinds) if f"  {kind}: " not in words and f" {kind}: " not in words] == []
