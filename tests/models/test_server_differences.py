"""What servers do differently from each other, and what Rank-K makes of it: one test per difference."""

from __future__ import annotations

from typing import Any

import pytest

from rank_k.engine import RunStats
from rank_k.errors import RetriesExhausted
from rank_k.models.retry import RetryPolicy
from rank_k.reranker import Reranker
from rank_k.types import Candidate, Passage, Query
from tests.fakes.scripted_server import (
    Ending,
    HttpResponse,
    Responder,
    ScriptedServer,
    as_events,
    as_json,
    chat_chunk,
    scripted_server,
)
from tests.fakes.vllm import CLOSE_TOKEN, OPEN_TOKEN, FakeVllm, decode_tokens, reversed_ranking

QUERIES = {f"q{number}": Query(f"q{number}", f"query {number}") for number in range(1, 4)}
PASSAGES = {f"d{number}": Passage(f"d{number}", f"passage {number}") for number in range(1, 6)}
RUN = {query_id: [Candidate(doc_id, 1.0) for doc_id in PASSAGES] for query_id in QUERIES}
REVERSED_IDS = tuple(reversed(PASSAGES))


def rerank(server: ScriptedServer, **options: Any) -> tuple[dict[str, tuple[str, ...]], RunStats]:
    options = {"model": "smol", "concurrency": 1, "retries": RetryPolicy(first=0.001, longest=0.01), **options}
    with Reranker(server=server.url, **options) as reranker:
        results = {result.query_id: result.ranking.doc_ids for result in reranker.rerank(RUN, QUERIES, PASSAGES)}
        return results, reranker.stats


def always_respond(response: HttpResponse) -> Responder:
    """A server that lists one model and answers every request with `reply`."""

    def respond(method: str, path: str, body: Any) -> HttpResponse:
        return as_json({"data": [{"id": "smol"}]}) if path == "/v1/models" else response

    return respond


# --- reasoning budgets ---


def test_rerank_uses_the_token_limit_after_a_rejected_budget() -> None:
    with scripted_server(FakeVllm(has_reasoning_parser=False)) as server:
        results, stats = rerank(server, reasoning="40")
    assert set(results.values()) == {REVERSED_IDS}
    with_budget = [body for body in server.bodies("/v1/chat/completions") if "thinking_token_budget" in body]
    assert len(with_budget) == 1, "the server is asked for a budget once"
    limits = [body["max_tokens"] for body in server.bodies("/v1/chat/completions") if "passage 1" in str(body)]
    assert limits == [40 + 32 + 8 * 5, 40, 40, 40]
    assert stats.repairs["budget_rejected"] == stats.repairs["forced_answers"] == 3


def test_rerank_uses_the_servers_budget_where_it_has_one() -> None:
    with scripted_server(FakeVllm(has_reasoning_parser=True, truncates_reasoning=False)) as server:
        results, stats = rerank(server, reasoning="40")
    assert set(results.values()) == {REVERSED_IDS}
    assert all("thinking_token_budget" in body for body in server.bodies("/v1/chat/completions"))
    assert not stats.repairs["budget_rejected"]


def test_rerank_fails_on_other_rejections_of_a_budget_request() -> None:
    refusal = as_json({"error": {"message": "temperature must not be negative", "code": 400}}, 400)

    def respond(method: str, path: str, body: Any) -> HttpResponse:
        return refusal if "thinking_token_budget" in (body or {}) else FakeVllm()(method, path, body)

    with scripted_server(respond) as server, pytest.raises(Exception, match="temperature must not be negative"):
        rerank(server, reasoning="40")


# --- templates that open the reasoning block ---


@pytest.mark.parametrize("template_opening", ["<think>\n", "<think>", "<think>\n\n", ""])
@pytest.mark.parametrize("reasoning", ["full", "40", "off"])
def test_forced_answer_opens_the_reasoning_block_once(template_opening: str, reasoning: str) -> None:
    """QwQ, R1 and Qwen3-Thinking open it in their template: the trace must not open it again."""

    def respond(method: str, path: str, body: Any) -> HttpResponse:
        server = FakeVllm(template_opening)
        if path == "/v1/chat/completions" and "enable_thinking" in str(body):  # a model that reasons in any case
            body = {**body, "chat_template_kwargs": {}}
        return server(method, path, body)

    with scripted_server(respond) as server:
        results, _ = rerank(server, reasoning=reasoning)
    assert set(results.values()) == {REVERSED_IDS}
    prompts = [body["prompt"] for body in server.bodies("/v1/completions")]
    assert len(prompts) == 3
    for ids in prompts:
        assert (ids.count(OPEN_TOKEN), ids.count(CLOSE_TOKEN)) == (1, 1)
        ending = decode_tokens(ids).partition("<|im_start|>assistant\n")[2]
        trace = "\n" if reasoning == "off" else "Passage [1] is about rain and [2] > [3] in detail\n"
        assert ending == f"<think>\n{trace}</think>\n\n"


# --- connections that break ---

RANKING = chat_chunk(reversed_ranking("[5] passage"), "stop")


@pytest.mark.parametrize("ending", ["no_last_chunk", "reset", "short"])
@pytest.mark.parametrize("done", [True, False])
def test_rerank_keeps_a_complete_stream_when_the_connection_breaks(ending: Ending, done: bool) -> None:
    with scripted_server(always_respond(as_events(RANKING, done=done, ending=ending))) as server:
        results, stats = rerank(server)
    assert set(results.values()) == {REVERSED_IDS}
    assert len(server.requests) == 3, "a reply that is paid for is not requested again"
    assert not stats.unranked_windows


@pytest.mark.parametrize("ending", ["no_last_chunk", "reset", "short"])
def test_rerank_keeps_a_complete_json_reply_when_the_connection_breaks(ending: Ending) -> None:
    message = {"role": "assistant", "content": reversed_ranking("[5] passage")}
    body = as_json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).body
    with scripted_server(always_respond(HttpResponse(body, ending=ending))) as server:
        results, _ = rerank(server)
    assert set(results.values()) == {REVERSED_IDS}
    assert len(server.requests) == 3


@pytest.mark.parametrize("ending", ["no_last_chunk", "reset", "short"])
def test_rerank_requests_a_partial_reply_again(ending: Ending) -> None:
    """The stream breaks before a finish reason: what arrived may be half an answer."""
    response = as_events(chat_chunk("[5] > "), done=False, ending=ending)
    with scripted_server(always_respond(response)) as server, pytest.raises(RetriesExhausted):
        rerank(server)
    assert len(server.requests) == 3 * RetryPolicy().broken


# --- content filters ---

CONTENT_FILTER_RESPONSES: dict[str, HttpResponse] = {
    "code": as_json({"error": {"message": "The prompt was blocked.", "code": "content_filter"}}, 400),
    "azure": as_json(
        {"error": {"message": "The response was filtered by Azure OpenAI's content management policy.", "code": None}},
        400,
    ),
    "openrouter": as_json({"error": {"code": 403, "message": "This model requires moderation: input flagged"}}, 403),
    "deepseek": as_json({"error": {"message": "Content Exists Risk", "code": "invalid_request_error"}}, 400),
    "stream": as_events({"error": {"message": "The prompt was blocked.", "code": "content_filter"}}, done=False),
}


@pytest.mark.parametrize("refusal", CONTENT_FILTER_RESPONSES)
def test_rerank_continues_after_a_content_filter_refuses_one_prompt(refusal: str) -> None:
    def respond(method: str, path: str, body: Any) -> HttpResponse:
        if path == "/v1/models":
            return as_json({"data": [{"id": "smol"}]})
        return CONTENT_FILTER_RESPONSES[refusal] if "query 2" in str(body) else as_events(RANKING)

    with scripted_server(respond) as server:
        results, stats = rerank(server)
    assert results == {"q1": REVERSED_IDS, "q2": tuple(PASSAGES), "q3": REVERSED_IDS}
    assert len(server.requests) == 3, "a refusal is not retried"
    assert stats.unranked == [("q2", 0)]
    assert stats.unranked_windows == stats.repairs["content_filtered"] == 1


def test_rank_counts_a_window_that_a_content_filter_refuses() -> None:
    with (
        scripted_server(always_respond(CONTENT_FILTER_RESPONSES["code"])) as server,
        Reranker("smol", server=server.url) as reranker,
    ):
        hits = reranker.rank("query", ["a", "b"])
    assert [hit.index for hit in hits] == [0, 1]
    assert hits.unranked_windows == hits.repairs["content_filtered"] == 1
