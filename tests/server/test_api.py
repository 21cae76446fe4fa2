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
from rank_k.models.base import Capabilities
from rank_k.models.retry import RetryPolicy
from rank_k.server.config import Limits
from rank_k.types import Request, Response, Usage
from tests.conftest import StartLoopback
from tests.support.serving import Served, served
from tests.support.waiting import PATIENCE, STUCK_SECONDS

pytestmark = pytest.mark.integration

THREE = ["one", "two", "three"]
NO_RETRIES = RetryPolicy(overloaded=1, broken=1)


def second_first(request: Request) -> Response:
    """Ranks 2 first, then the others, the last one tied."""
    numbers = [2, 1, *range(3, len(request.context.doc_ids) + 1)]
    text = " > ".join(f"[{n}]" for n in numbers[:-1]) + f" = [{numbers[-1]}]"
    return Response(text, "a thought", "stop", Usage(100, 20, 15, 5), 0.1)


@pytest.fixture(scope="module")
def model() -> ScriptedModel:
    return ScriptedModel(second_first)


@pytest.fixture(scope="module")
def server(model: ScriptedModel) -> Iterator[Served]:
    with served(Reranker(model)) as running:
        yield running


@pytest.mark.parametrize("path", ["/v2/rerank", "/v1/rerank", "/rerank"])
def test_results_are_sorted_and_scored_by_rank(server: Served, path: str) -> None:
    answer = server.post({"model": "any", "query": "q", "documents": THREE}, path)
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    told = answer.json
    assert told["results"] == [
        {"index": 1, "relevance_score": 1.0},
        {"index": 0, "relevance_score": 1 / 2},
        {"index": 2, "relevance_score": 1 / 3, "tied": True},
    ]
    assert (told["model"], told["finished"], told["unranked_windows"], told["repairs"]) == ("scripted", True, 0, {})
    assert told["usage"] == {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 5},
        "completion_tokens_details": {"reasoning_tokens": 15},
    }
    assert told["meta"]["tokens"] == {"input_tokens": 100, "output_tokens": 20}
    assert "traces" not in told


@pytest.mark.parametrize(("top_n", "count"), [(None, 3), (0, 3), (1, 1), (2.0, 2), (3, 3), (99, 3)])
def test_top_n_none_or_zero_means_all(server: Served, top_n: Any, count: int) -> None:
    assert server.rerank(THREE, top_n=top_n).indices == [1, 0, 2][:count]


@pytest.mark.parametrize("count", [5, 9])
def test_documents_beyond_the_depth_are_warned_of(count: int) -> None:
    with served(Reranker(ScriptedModel(second_first), depth=5)) as shallow:
        answer = shallow.rerank([f"text {i}" for i in range(count)], top_n=3)
    assert answer.indices == [1, 0, 2]
    warnings = ["only the first 5 of 9 documents were compared: see --depth"] if count == 9 else []
    assert answer.json["meta"]["warnings"] == warnings


def test_documents_come_back_as_objects_with_a_text_where_asked(server: Served) -> None:
    answer = server.rerank(["one", {"text": "two", "id": 7}, {"text": "three"}], return_documents=True)
    assert [result["document"] for result in answer.json["results"]] == [{"text": t} for t in ("two", "one", "three")]


def test_the_trace_comes_where_asked(server: Served) -> None:
    assert server.rerank(THREE, return_trace=True).json["traces"] == ["a thought"]


def test_unknown_fields_and_nulls_are_ignored(server: Served) -> None:
    fields: dict[str, Any] = {
        "max_tokens_per_doc": 4096,
        "rank_fields": ["x"],
        "instruction": None,
        "priority": 1,
        "truncate": True,
    }
    nullable = ("model", "top_n", "return_documents", "reasoning", "strategy", "deadline_seconds", "stream")
    fields |= dict.fromkeys(nullable)
    assert server.rerank(THREE, **fields).indices == [1, 0, 2]


def test_texts_get_a_bare_list(server: Served) -> None:
    asked = {"query": "q", "texts": THREE, "return_text": True, "raw_scores": False, "truncate": True}
    assert server.post(asked, "/rerank").json == [
        {"index": 1, "score": 1.0, "text": "two"},
        {"index": 0, "score": 1 / 2, "text": "one"},
        {"index": 2, "score": 1 / 3, "text": "three"},
    ]
    assert server.post({"query": "q", "texts": THREE}, "/v1/rerank").status == 422
    assert server.post({"query": "q", "texts": THREE, "documents": THREE}, "/rerank").json["field"] == "texts"


def test_nothing_to_compare_is_answered_without_a_question(server: Served, model: ScriptedModel) -> None:
    before = len(model.history)
    assert server.rerank([]).json["results"] == []
    assert server.rerank(["only"]).indices == [0]
    assert len(model.history) == before


def test_a_request_may_say_how_to_think_and_by_which_strategy(server: Served, model: ScriptedModel) -> None:
    server.rerank(THREE, query="off", reasoning="off")
    assert model.history[-1].reasoning is False
    server.rerank(THREE, query="full")
    assert model.history[-1].reasoning is None
    many = [f"text {i}" for i in range(30)]
    before = len(model.history)
    assert sorted(server.rerank(many, query="one window", strategy="single").indices) == list(range(30))
    assert len(model.history) - before == 1
    server.rerank(many, query="one window")
    assert len(model.history) - before == 1 + 2, "and the next one slides again"


@pytest.mark.parametrize(
    ("fields", "at"),
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
def test_a_field_that_is_wrong_is_named(server: Served, model: ScriptedModel, fields: dict[str, Any], at: str) -> None:
    before = len(model.history)
    answer = server.post({"query": "q", "documents": THREE} | fields)
    told = answer.json
    assert (answer.status, told["field"]) == (422, at)
    assert told["message"] == told["detail"]
    assert told["message"].startswith(f"{at}: ")
    assert len(model.history) == before


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_ranks_by_likelihood_has_neither_thought_nor_strategy(stream: bool) -> None:
    def likelier_if_longer(request: Request) -> Response:
        assert request.forced_text is not None
        score = len(request.messages[0].content) - 1000.0
        return Response(request.forced_text, None, "stop", Usage(10, 1), tokens=((request.forced_text, score),))

    model = ScriptedModel(
        likelier_if_longer, abilities=Capabilities(logprobs=True, reasons=False, scores_given_text=True)
    )
    with served(Reranker(model, method="likelihood")) as server:
        for fields in ({"reasoning": "off"}, {"strategy": "single"}):
            [name] = fields
            answer = server.rerank(THREE, stream=stream, **fields)
            assert (answer.status, answer.json["field"]) == (422, name)
            assert "likelihood" in answer.json["message"]
        assert model.history == []
        answer = server.rerank(THREE, stream=stream, return_trace=True)
        told = dict(answer.events)["result"] if stream else answer.json
        assert [result["index"] for result in told["results"]] == [2, 0, 1]
        assert [result.get("tied", False) for result in told["results"]] == [False, False, True]
        assert told["traces"] == []
        assert [kind for kind, _ in answer.events] == ["window", "order", "result"] if stream else True


# --- streams ---


def test_a_stream_tells_traces_orders_rankings_and_the_result(server: Served) -> None:
    many = [f"streamed {i}" for i in range(30)]
    answer = server.rerank(many, stream=True, return_documents=True, top_n=2)
    assert answer.headers["content-type"].startswith("text/event-stream")
    kinds = [kind for kind, _ in answer.events]
    assert kinds == ["window", "trace", "order", "ranking", "window", "trace", "order", "result"]
    window, trace, order, ranking, _, _, last_order, result = [told for _, told in answer.events]
    assert window == {"round": 1, "window": 1, "shown": list(range(10, 30))}
    assert order["usage"] == {"prompt_tokens": 100, "completion_tokens": 20}
    assert (trace["round"], trace["window"], trace["reasoning"]) == (1, 1, "a thought")
    assert (order["shown"], order["tiers"][0], order["ranked"]) == (list(range(10, 30)), [11], True)
    assert sorted(ranking["indices"]) == list(range(30))
    assert last_order["round"] == 2
    assert [r["index"] for r in result["results"]] == last_order["tiers"][0] + last_order["tiers"][1]
    assert result["results"] == server.rerank(many, return_documents=True, top_n=2).json["results"]


def test_a_stream_of_what_the_journal_knows_tells_the_same(server: Served) -> None:
    first, again = (server.rerank([*THREE, "again"], stream=True).events for _ in range(2))
    first[-1][1].pop("id")
    again[-1][1].pop("id")
    assert first == again


def test_pieces_of_a_stream_come_while_the_model_speaks(loopback: StartLoopback) -> None:
    slow = loopback(first_token=0.05, per_token=0.001, flush=0.05)
    with served(Reranker(server=slow.url)) as server:
        answer = server.rerank(["mark:a-G1 x", "mark:b-G2 y"], stream=True, return_trace=True)
    pieces = [told for kind, told in answer.events if kind == "trace"]
    result = answer.events[-1][1]
    assert len(pieces) > 2
    said = "".join(piece["reasoning"] + piece["text"] for piece in pieces)
    assert result["traces"][0].strip() in said
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
def test_an_error_of_the_model_is_told_without_its_insides(error: Exception, status: int) -> None:
    with served(Reranker(ScriptedModel(lambda _: error), retries=NO_RETRIES)) as server:
        answers = [server.rerank(THREE), server.rerank(THREE, stream=True)]
        assert server.get("/health").status == 200
    told = answers[0].json
    assert (answers[0].status, told["message"]) == (status, told["detail"])
    if answers[1].status == 200:  # begun with what became of the window
        kind, told = answers[1].events[-1]
        assert (kind, told["status"], told["message"]) == ("error", status, told["detail"])
    else:
        assert (answers[1].status, answers[1].json) == (status, told)
    for answer in answers:
        for secret in ("inner-host", "sk-secret", "Traceback", "ValueError"):
            assert secret.encode() not in answer.raw
    assert len(server.errors) == 2, "who runs the server hears of it"


def test_an_answer_that_cannot_be_kept_is_not_taken_for_a_fault_of_ours() -> None:
    reranker = Reranker(ScriptedModel(second_first))
    with served(reranker) as server:
        assert server.rerank(THREE, query="before").status == 200
        reranker.journal._db.execute("PRAGMA query_only = ON")  # as if the disk were full
        answers = [server.rerank(THREE), server.rerank(THREE, stream=True)]
    for answer in answers:
        assert (answer.status, answer.json["message"]) == (507, "the answer could not be kept")
    assert [type(error) for error in server.errors] == [JournalError] * 2


def test_an_error_in_mid_stream_is_an_event() -> None:
    script: list[str | Response | Exception] = [" > ".join(f"[{n}]" for n in range(1, 21))]
    script.append(RequestRejected("no", status=403))
    with served(Reranker(ScriptedModel(script), retries=NO_RETRIES)) as server:
        events = server.rerank([f"text {i}" for i in range(30)], stream=True).events
    assert [kind for kind, _ in events] == ["window", "trace", "order", "ranking", "window", "error"]
    assert (events[-1][1]["status"], events[-1][1]["message"]) == (502, events[-1][1]["detail"])


def test_a_read_timeout_is_a_gateway_timeout(loopback: StartLoopback) -> None:
    stuck = loopback(first_token=STUCK_SECONDS)
    with served(Reranker(server=stuck.url, read_timeout=0.2, retries=NO_RETRIES)) as server:
        assert server.rerank(THREE).status == 504


# --- deadlines, repetition ---


def test_a_deadline_gets_the_best_so_far(loopback: StartLoopback) -> None:
    stuck = loopback(first_token=STUCK_SECONDS)
    with served(Reranker(server=stuck.url)) as server:
        answer = server.rerank(THREE, deadline_seconds=0.3)
    assert (answer.status, answer.indices, answer.json["finished"]) == (200, [0, 1, 2], False)
    assert "deadline" in answer.json["meta"]["warnings"][0]


def test_a_deadline_covers_getting_to_know_the_model() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and says nothing
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        with served(Reranker("m", server=url)) as server:
            for fields in ({}, {"reasoning": "off"}):
                answer = server.rerank(THREE, deadline_seconds=0.3, **fields)
                assert (answer.status, answer.indices, answer.json["finished"]) == (200, [0, 1, 2], False)


def test_clients_that_name_no_deadline_get_the_servers(loopback: StartLoopback) -> None:
    stuck = loopback(first_token=STUCK_SECONDS)
    with served(Reranker(server=stuck.url), Limits(deadline_seconds=0.3)) as server:
        assert server.rerank(THREE).json["finished"] is False
        assert server.rerank(THREE, deadline_seconds=None, stream=True).events[-1][1]["finished"] is False
        stuck.change(first_token=1.0)
        answer = server.rerank(["mark:a-G1 x", "mark:b-G2 y"], deadline_seconds=PATIENCE)
    assert (answer.indices, answer.json["finished"]) == ([1, 0], True), "its own goes before"


def test_the_same_request_again_or_at_once_is_asked_once(loopback: StartLoopback) -> None:
    from concurrent.futures import ThreadPoolExecutor

    slow = loopback(first_token=0.3)
    documents = ["mark:a-G1 x", "mark:b-G2 y", "mark:c-G3 z"]
    with served(Reranker(server=slow.url)) as server, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.rerank(documents), range(8)))
        answers.append(server.rerank(documents, return_documents=True))
    assert [answer.indices for answer in answers] == [[2, 1, 0]] * 9
    assert len(slow.calls) == 1


# --- the other paths ---


def test_models_health_metrics_and_the_document(server: Served) -> None:
    assert server.get("/v1/models").json["data"][0]["id"] == "scripted"
    assert server.get("/health").json == {"status": "ok"}
    server.rerank(THREE)
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


def test_paths_and_methods_that_do_not_exist_are_told_in_json(server: Served) -> None:
    for method, path, status in (("GET", "/nothing", 404), ("GET", "/v2/rerank", 405), ("DELETE", "/health", 405)):
        answer = server.ask(method, path)
        assert (answer.status, answer.json["message"]) == (status, answer.json["detail"])
    assert server.post({}, "/nothing").status == 404
    assert b'path="/nothing"' not in server.get("/metrics").raw
