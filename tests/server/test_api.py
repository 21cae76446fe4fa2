"""What clients of other people's making send, and what they read: fields, dialects, streams, errors."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.errors import (
    ConnectionFailed,
    InputError,
    JournalError,
    ModelError,
    QueryTooLong,
    RequestRejected,
    ServerError,
    ServerOverloaded,
)
from rank_k.models.retry import RetryPolicy
from rank_k.server.config import Limits
from rank_k.types import Request, Response, Usage
from tests.conftest import StartLoopback
from tests.fakes.likelihood_model import make_likelihood_model
from tests.support.serving import ServerClient, run_server
from tests.support.waiting import PATIENCE, STUCK_SECONDS

pytestmark = pytest.mark.integration

DOCUMENTS = ["one", "two", "three"]
NO_RETRIES = RetryPolicy(overloaded=1, broken=1)


def rank_second_first(request: Request) -> Response:
    """Ranks 2 first, then the others, the last one tied."""
    numbers = [2, 1, *range(3, len(request.context.doc_ids) + 1)]
    text = " > ".join(f"[{n}]" for n in numbers[:-1]) + f" = [{numbers[-1]}]"
    return Response(text, "a thought", "stop", Usage(100, 20, 15, 5), 0.1)


@pytest.fixture(scope="module")
def model() -> ScriptedModel:
    return ScriptedModel(rank_second_first)


@pytest.fixture(scope="module")
def server(model: ScriptedModel) -> Iterator[ServerClient]:
    with run_server(Reranker(model)) as running:
        yield running


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank"])
def test_rerank_sorts_and_scores_by_rank(server: ServerClient, path: str) -> None:
    answer = server.post({"model": "any", "query": "q", "documents": DOCUMENTS}, path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    body = answer.json
    assert body["results"] == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 0, "relevance_score": 1 / 2},
        {"index": 2, "relevance_score": 1 / 3, "tied": True},
    ]
    assert (body["model"], body["finished"], body["unranked_windows"], body["repairs"]) == ("scripted", True, 0, {})
    assert body["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 15},
    }
    assert body["meta"]["tokens"] == {"input_tokens": 100, "output_tokens": 20}
    assert "traces" not in body


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (0, 3), (1, 1), (2.0, 2), (3, 3), (99, 3)])
def test_rerank_top_n_none_or_zero_returns_all(server: ServerClient, top_n: Any, count: int) -> None:
    assert server.rerank(DOCUMENTS, top_n=top_n).indices == [1, 0, 2][:count]


@pytest.mark.parametrize("count", [5, 9])
def test_rerank_warns_of_documents_beyond_depth(count: int) -> None:
    with run_server(Reranker(ScriptedModel(rank_second_first), depth=5)) as shallow:
        answer = shallow.rerank([f"text {i}" for i in range(count)], top_n=3)
    assert answer.indices == [1, 0, 2]
    warnings = (
        ["only the first 5 of 9 documents were compared; the others follow in input order (see --depth)"]
        if count == 9
        else []
    )
    assert answer.json["meta"]["warnings"] == warnings


def test_rerank_return_documents_returns_text_objects(server: ServerClient) -> None:
    answer = server.rerank(["one", {"text": "two", "id": 7}, {"text": "three"}], return_documents=True)
    assert [result["document"] for result in answer.json["results"]] == [{"text": t} for t in ("two", "one", "three")]


def test_rerank_return_trace_returns_reasoning(server: ServerClient) -> None:
    assert server.rerank(DOCUMENTS, return_trace=True).json["traces"] == ["a thought"]


def test_rerank_ignores_unknown_fields_and_nulls(server: ServerClient) -> None:
    fields: dict[str, Any] = {
        "max_tokens_per_doc": 4096,
        "rank_fields": ["x"],
        "instruction": None,
        "priority": 1,
        "truncate": True,
    }
    nullable = ("model", "top_n", "return_documents", "reasoning", "strategy", "deadline_seconds", "stream")
    fields |= dict.fromkeys(nullable)
    assert server.rerank(DOCUMENTS, **fields).indices == [1, 0, 2]


def test_rerank_texts_returns_bare_list(server: ServerClient) -> None:
    body = {"query": "q", "texts": DOCUMENTS, "return_text": True, "raw_scores": False, "truncate": True}
    assert server.post(body, "/rerank").json == [
        {"index": 1, "score": 1.0, "text": "two"},
        {"index": 0, "score": 1 / 2, "text": "one"},
        {"index": 2, "score": 1 / 3, "text": "three"},
    ]
    assert server.post({"query": "q", "texts": DOCUMENTS}, "/v1/rerank").status == 422
    assert server.post({"query": "q", "texts": DOCUMENTS, "documents": DOCUMENTS}, "/rerank").json["field"] == "texts"


def test_rerank_trivial_input_makes_no_model_call(server: ServerClient, model: ScriptedModel) -> None:
    calls_before = len(model.history)
    assert server.rerank([]).json["results"] == []
    assert server.rerank(["only"]).indices == [0]
    assert len(model.history) == calls_before


def test_rerank_accepts_reasoning_and_strategy(server: ServerClient, model: ScriptedModel) -> None:
    server.rerank(DOCUMENTS, query="off", reasoning="off")
    assert model.history[-1].reasoning is False
    server.rerank(DOCUMENTS, query="full")
    assert model.history[-1].reasoning is None
    documents = [f"text {i}" for i in range(30)]
    calls_before = len(model.history)
    assert sorted(server.rerank(documents, query="one window", strategy="single").indices) == list(range(30))
    assert len(model.history) - calls_before == 1
    server.rerank(documents, query="one window")
    assert len(model.history) - calls_before == 1 + 2, "and the next one slides again"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"query": None}, "query"),
        ({"query": ""}, "query"),
        ({"query": 5}, "query"),
        ({"documents": None}, "documents"),
        ({"documents": "text"}, "documents"),
        ({"documents": ["a", 5]}, "documents[1]"),
        ({"documents": [{"text": 5}]}, "documents[0]"),
        ({"documents": [{"image": "x"}]}, "documents[0]"),
        ({"model": 5}, "model"),
        ({"top_n": -1}, "top_n"),
        ({"top_n": 1.5}, "top_n"),
        ({"top_n": True}, "top_n"),
        ({"top_n": "3"}, "top_n"),
        ({"return_documents": 1}, "return_documents"),
        ({"stream": "yes"}, "stream"),
        ({"reasoning": "hard"}, "reasoning"),
        ({"reasoning": 0}, "reasoning"),
        ({"reasoning": True}, "reasoning"),
        ({"reasoning": 1.5}, "reasoning"),
        ({"strategy": "bubble"}, "strategy"),
        ({"strategy": "os:system"}, "strategy"),
        ({"strategy": "rank_k.strategies.single:Single"}, "strategy"),
        ({"deadline_seconds": 0}, "deadline_seconds"),
        ({"deadline_seconds": "60"}, "deadline_seconds"),
    ],
)
def test_rerank_names_the_invalid_field(
    server: ServerClient, model: ScriptedModel, fields: dict[str, Any], field: str
) -> None:
    calls_before = len(model.history)
    answer = server.post({"query": "q", "documents": DOCUMENTS} | fields)
    body = answer.json
    assert (answer.status, body["field"]) == (422, field)
    assert body["message"] == body["detail"]
    assert body["message"].startswith(f"{field}: ")
    assert len(model.history) == calls_before


@pytest.mark.parametrize("stream", [False, True])
def test_likelihood_server_rejects_reasoning_and_strategy(stream: bool) -> None:
    model = make_likelihood_model()
    with run_server(Reranker(model, method="likelihood")) as server:
        for fields in ({"reasoning": "off"}, {"strategy": "single"}):
            [name] = fields
            answer = server.rerank(DOCUMENTS, stream=stream, **fields)
            assert (answer.status, answer.json["field"]) == (422, name)
            assert "likelihood" in answer.json["message"]
        assert model.history == []
        answer = server.rerank(DOCUMENTS, stream=stream, return_trace=True)
        response_body = dict(answer.events)["result"] if stream else answer.json
        assert [result["index"] for result in response_body["results"]] == [2, 0, 1]
        assert [result.get("tied", False) for result in response_body["results"]] == [False, False, True]
        assert response_body["traces"] == []
        assert [kind for kind, _ in answer.events] == ["window", "order", "result"] if stream else True


# --- streams ---


def test_stream_sends_traces_orders_rankings_and_result(server: ServerClient) -> None:
    documents = [f"streamed {i}" for i in range(30)]
    answer = server.rerank(documents, stream=True, return_documents=True, top_n=2)
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [kind for kind, _ in answer.events]
    assert kinds == ["window", "trace", "order", "ranking", "window", "trace", "order", "result"]
    window, trace, order, ranking, _, _, last_order, result = [data for _, data in answer.events]
    assert window == {"round": 1, "window": 1, "shown": list(range(10, 30))}
    assert order["usage"] == {"prompt_tokens": 100, "completion_tokens": 20}
    assert (trace["round"], trace["window"], trace["reasoning"]) == (1, 1, "a thought")
    assert (order["shown"], order["tiers"][0], order["ranked"]) == (list(range(10, 30)), [11], True)
    assert sorted(ranking["indices"]) == list(range(30))
    assert last_order["round"] == 2
    assert [r["index"] for r in result["results"]] == last_order["tiers"][0] + last_order["tiers"][1]
    assert result["results"] == server.rerank(documents, return_documents=True, top_n=2).json["results"]


def test_stream_of_cached_calls_sends_same_events(server: ServerClient) -> None:
    first, second = (server.rerank([*DOCUMENTS, "again"], stream=True).events for _ in range(2))
    first[-1][1].pop("id")
    second[-1][1].pop("id")
    assert first == second


def test_stream_sends_trace_chunks_as_they_arrive(loopback: StartLoopback) -> None:
    slow = loopback(first_token=0.05, per_token=0.001, flush=0.05)
    with run_server(Reranker(server=slow.url)) as server:
        answer = server.rerank(["mark:a-G1 x", "mark:b-G2 y"], stream=True, return_trace=True)
    chunks = [data for kind, data in answer.events if kind == "trace"]
    result = answer.events[-1][1]
    assert len(chunks) > 2
    assert result["traces"][0].strip() in "".join(chunk["reasoning"] for chunk in chunks)
    assert "think" not in "".join(chunk["text"] for chunk in chunks)
    details = result["usage"]["completion_tokens_details"]
    assert 0 < details["reasoning_tokens"] < result["usage"]["completion_tokens"]
    assert [r["index"] for r in result["results"]] == [1, 0]


# --- the model fails ---

SECRET = "http://inner-host:9/v1 key sk-secret"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConnectionFailed(SECRET), 502),
        (ServerError(SECRET), 502),
        (RequestRejected(SECRET, status=401), 502),
        (ServerOverloaded(SECRET), 503),
        (ModelError(SECRET), 502),
        (InputError(SECRET), 502),
        (QueryTooLong(SECRET), 422),
        (ValueError(SECRET), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_model_errors_are_reported_without_details(error: Exception, status: int) -> None:
    with run_server(Reranker(ScriptedModel(lambda _: error), retries=NO_RETRIES)) as server:
        answers = [server.rerank(DOCUMENTS), server.rerank(DOCUMENTS, stream=True)]
        assert server.get("/health").status == 200
    body = answers[0].json
    assert (answers[0].status, body["message"]) == (status, body["detail"])
    if answers[1].status == 200:  # begun with what became of the window
        kind, body = answers[1].events[-1]
        assert (kind, body["status"], body["message"]) == ("error", status, body["detail"])
    else:
        assert (answers[1].status, answers[1].json) == (status, body)
    for answer in answers:
        for secret in ("inner-host", "sk-secret", "Traceback", "ValueError"):
            assert secret.encode() not in answer.raw
    assert len(server.errors) == 2, "who runs the server hears of it"


def test_journal_write_errors_return_507() -> None:
    reranker = Reranker(ScriptedModel(rank_second_first))
    with run_server(reranker) as server:
        assert server.rerank(DOCUMENTS, query="before").status == 200
        reranker.journal._db.execute("PRAGMA query_only = ON")  # as if the disk were full
        answers = [server.rerank(DOCUMENTS), server.rerank(DOCUMENTS, stream=True)]
    for answer in answers:
        assert (answer.status, answer.json["message"]) == (507, "the response could not be stored in the journal")
    assert [type(error) for error in server.errors] == [JournalError] * 2


def test_stream_sends_error_event_for_later_failures() -> None:
    script: list[str | Response | Exception] = [" > ".join(f"[{n}]" for n in range(1, 21))]
    script.append(RequestRejected("no", status=403))
    with run_server(Reranker(ScriptedModel(script), retries=NO_RETRIES)) as server:
        events = server.rerank([f"text {i}" for i in range(30)], stream=True).events
    assert [kind for kind, _ in events] == ["window", "trace", "order", "ranking", "window", "error"]
    assert (events[-1][1]["status"], events[-1][1]["message"]) == (502, events[-1][1]["detail"])


def test_read_timeout_returns_504(loopback: StartLoopback) -> None:
    stuck = loopback(first_token=STUCK_SECONDS)
    with run_server(Reranker(server=stuck.url, read_timeout=0.2, retries=NO_RETRIES)) as server:
        assert server.rerank(DOCUMENTS).status == 504


# --- deadlines, repetition ---


def test_deadline_returns_best_ranking_so_far(loopback: StartLoopback) -> None:
    stuck = loopback(first_token=STUCK_SECONDS)
    with run_server(Reranker(server=stuck.url)) as server:
        answer = server.rerank(DOCUMENTS, deadline_seconds=0.3)
    assert (answer.status, answer.indices, answer.json["finished"]) == (200, [0, 1, 2], False)
    assert "deadline" in answer.json["meta"]["warnings"][0]


def test_deadline_includes_model_discovery() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with run_server(Reranker("m", server=url)) as server:
            for fields in ({}, {"reasoning": "off"}):
                answer = server.rerank(DOCUMENTS, deadline_seconds=0.3, **fields)
                assert (answer.status, answer.indices, answer.json["finished"]) == (200, [0, 1, 2], False)


def test_default_deadline_applies_without_deadline_field(loopback: StartLoopback) -> None:
    stuck = loopback(first_token=STUCK_SECONDS)
    with run_server(Reranker(server=stuck.url), Limits(deadline=0.3)) as server:
        assert server.rerank(DOCUMENTS).json["finished"] is False
        assert server.rerank(DOCUMENTS, deadline_seconds=None, stream=True).events[-1][1]["finished"] is False
        stuck.change(first_token=1.0)
        answer = server.rerank(["mark:a-G1 x", "mark:b-G2 y"], deadline_seconds=PATIENCE)
    assert (answer.indices, answer.json["finished"]) == ([1, 0], True), "its own goes before"


def test_identical_requests_share_one_model_call(loopback: StartLoopback) -> None:
    from concurrent.futures import ThreadPoolExecutor

    slow = loopback(first_token=0.3)
    documents = ["mark:a-G1 x", "mark:b-G2 y", "mark:c-G3 z"]
    with run_server(Reranker(server=slow.url)) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.rerank(documents), range(8)))
        answers.append(server.rerank(documents, return_documents=True))
    assert [answer.indices for answer in answers] == [[2, 1, 0]] * 9
    assert len(slow.calls) == 1


# --- the other paths ---


def test_informational_paths_return_their_documents(server: ServerClient) -> None:
    assert server.get("/v1/models").json["data"][0]["id"] == "scripted"
    assert server.get("/health").json == {"status": "ok"}
    server.rerank(DOCUMENTS)
    metrics = server.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain")
    lines = dict(line.rsplit(" ", 1) for line in metrics.raw.decode().splitlines() if not line.startswith("#"))
    assert float(lines['rank_k_requests_total{path="/v2/rerank",status="200"}']) >= 1
    assert float(lines['rank_k_tokens_total{kind="prompt"}']) >= 100
    assert lines["rank_k_requests_running"] == "0.0"
    document = server.get("/openapi.json").json
    assert document["openapi"].startswith("3.1")
    assert set(document["paths"]) == {
        *("/v2/rerank", "/v1/rerank", "/rerank", "/v1/models", "/health", "/metrics", "/openapi.json", "/demo"),
        *("/journal/runs", "/journal/queries", "/journal/query", "/journal/window"),
    }


def test_openapi_defaults_are_allowed_by_their_schemas(server: ServerClient) -> None:
    components = server.get("/openapi.json").json["components"]["schemas"]
    fields = [field for schema in components.values() for field in schema.get("properties", {}).values()]
    nullable = [field for field in fields if "default" in field and field["default"] is None]
    assert len(nullable) > 10
    for field in nullable:
        assert "type" not in field, field
        assert {"type": "null"} in field["anyOf"], field


def test_unknown_paths_and_methods_return_json_errors(server: ServerClient) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v2/rerank", 405), ("DELETE", "/health", 405)):
        answer = server.send(method, path)
        assert (answer.status, answer.json["message"]) == (status, answer.json["detail"])
        assert ("allow" in answer.headers) == (status == 405)
    answer = server.get("/v2/rerank")
    assert answer.headers["allow"] == "POST"
    assert answer.json["message"] == "'/v2/rerank' accepts only POST"
    assert server.post({}, "/nothing").status == 404
    assert b'path="/nothing"' not in server.get("/metrics").raw
