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
    Answer,
    Ending,
    ScriptedServer,
    ServerReply,
    as_events,
    as_json,
    chat_chunk,
    scripted_server,
)
from tests.fakes.vllm import CLOSE, OPEN, FakeVllm, reversed_ranking, text_of

QUERIES = {f"q{number}": Query(f"q{number}", f"query {number}") for number in range(1, 4)}
PASSAGES = {f"d{number}": Passage(f"d{number}", f"passage {number}") for number in range(1, 6)}
RUN = {query_id: [Candidate(doc_id, 1.0) for doc_id in PASSAGES] for query_id in QUERIES}
REVERSED = tuple(reversed(PASSAGES))


def rerank(server: ScriptedServer, **options: Any) -> tuple[dict[str, tuple[str, ...]], RunStats]:
    options = {"model": "smol", "concurrency": 1, "retries": RetryPolicy(first=0.001, longest=0.01), **options}
    with Reranker(server=server.url, **options) as reranker:
        results = {result.query_id: result.ranking.doc_ids for result in reranker.rerank(RUN, QUERIES, PASSAGES)}
        return results, reranker.stats


def one_reply(reply: ServerReply) -> Answer:
    """A server that lists one model and answers every request with `reply`."""

    def answer(method: str, path: str, body: Any) -> ServerReply:
        return as_json({"data": [{"id": "smol"}]}) if path == "/v1/models" else reply

    return answer


# --- reasoning budgets ---


def test_rerank_falls_back_to_the_token_limit_when_vllm_refuses_a_reasoning_budget() -> None:
    with scripted_server(FakeVllm(parser=False)) as server:
        results, tally = rerank(server, reasoning="40")
    assert set(results.values()) == {REVERSED}
    with_budget = [body for body in server.bodies("/v1/chat/completions") if "thinking_token_budget" in body]
    assert len(with_budget) == 1, "the server is asked for a budget once"
    limits = [body["max_tokens"] for body in server.bodies("/v1/chat/completions") if "passage 1" in str(body)]
    assert limits == [40 + 32 + 8 * 5, 40, 40, 40]
    assert tally.repairs["budget_rejected"] == tally.repairs["forced_answers"] == 3


def test_rerank_uses_the_servers_budget_where_it_has_one() -> None:
    with scripted_server(FakeVllm(parser=True, truncates=False)) as server:
        results, tally = rerank(server, reasoning="40")
    assert set(results.values()) == {REVERSED}
    assert all("thinking_token_budget" in body for body in server.bodies("/v1/chat/completions"))
    assert not tally.repairs["budget_rejected"]


def test_rerank_fails_when_a_request_with_a_budget_is_refused_for_another_reason() -> None:
    refusal = as_json({"error": {"message": "temperature must not be negative", "code": 400}}, 400)

    def answer(method: str, path: str, body: Any) -> ServerReply:
        return refusal if "thinking_token_budget" in (body or {}) else FakeVllm()(method, path, body)

    with scripted_server(answer) as server, pytest.raises(Exception, match="temperature must not be negative"):
        rerank(server, reasoning="40")


# --- templates that open the reasoning block ---


@pytest.mark.parametrize("opens", ["<think>\n", "<think>", "<think>\n\n", ""])
@pytest.mark.parametrize("reasoning", ["full", "40", "off"])
def test_forced_answer_opens_the_reasoning_block_once(opens: str, reasoning: str) -> None:
    """QwQ, R1 and Qwen3-Thinking open it in their template: the trace must not open it again."""

    def answer(method: str, path: str, body: Any) -> ServerReply:
        server = FakeVllm(opens)
        if path == "/v1/chat/completions" and "enable_thinking" in str(body):  # a model that reasons in any case
            body = {**body, "chat_template_kwargs": {}}
        return server(method, path, body)

    with scripted_server(answer) as server:
        results, _ = rerank(server, reasoning=reasoning)
    assert set(results.values()) == {REVERSED}
    prompts = [body["prompt"] for body in server.bodies("/v1/completions")]
    assert len(prompts) == 3
    for ids in prompts:
        assert (ids.count(OPEN), ids.count(CLOSE)) == (1, 1)
        ending = text_of(ids).partition("<|im_start|>assistant\n")[2]
        trace = "\n" if reasoning == "off" else "Passage [1] is about rain and [2] > [3] in detail\n"
        assert ending == f"<think>\n{trace}</think>\n\n"


# --- connections that break ---

RANKING = chat_chunk(reversed_ranking("[5] passage"), "stop")


@pytest.mark.parametrize("ending", ["no_last_chunk", "reset", "short"])
@pytest.mark.parametrize("done", [True, False])
def test_rerank_keeps_a_complete_stream_when_the_connection_breaks(ending: Ending, done: bool) -> None:
    with scripted_server(one_reply(as_events(RANKING, done=done, ending=ending))) as server:
        results, tally = rerank(server)
    assert set(results.values()) == {REVERSED}
    assert len(server.requests) == 3, "a reply that is paid for is not requested again"
    assert not tally.unranked_windows


@pytest.mark.parametrize("ending", ["no_last_chunk", "reset", "short"])
def test_rerank_keeps_a_complete_json_reply_when_the_connection_breaks(ending: Ending) -> None:
    message = {"role": "assistant", "content": reversed_ranking("[5] passage")}
    body = as_json({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}).body
    with scripted_server(one_reply(ServerReply(body, ending=ending))) as server:
        results, _ = rerank(server)
    assert set(results.values()) == {REVERSED}
    assert len(server.requests) == 3


@pytest.mark.parametrize("ending", ["no_last_chunk", "reset", "short"])
def test_rerank_requests_a_partial_reply_again(ending: Ending) -> None:
    """The stream breaks before a finish reason: what arrived may be half an answer."""
    reply = as_events(chat_chunk("[5] > "), done=False, ending=ending)
    with scripted_server(one_reply(reply)) as server, pytest.raises(RetriesExhausted):
        rerank(server)
    assert len(server.requests) == 3 * RetryPolicy().broken


# --- content filters ---

FILTERED: dict[str, ServerReply] = {
    "code": as_json({"error": {"message": "The prompt was blocked.", "code": "content_filter"}}, 400),
    "azure": as_json(
        {"error": {"message": "The response was filtered by Azure OpenAI's content management policy.", "code": None}},
        400,
    ),
    "openrouter": as_json({"error": {"code": 403, "message": "This model requires moderation: input flagged"}}, 403),
    "deepseek": as_json({"error": {"message": "Content Exists Risk", "code": "invalid_request_error"}}, 400),
    "stream": as_events({"error": {"message": "The prompt was blocked.", "code": "content_filter"}}, done=False),
}


@pytest.mark.parametrize("refusal", FILTERED)
def test_rerank_continues_after_a_content_filter_refuses_one_prompt(refusal: str) -> None:
    def answer(method: str, path: str, body: Any) -> ServerReply:
        if path == "/v1/models":
            return as_json({"data": [{"id": "smol"}]})
        return FILTERED[refusal] if "query 2" in str(body) else as_events(RANKING)

    with scripted_server(answer) as server:
        results, tally = rerank(server)
    assert results == {"q1": REVERSED, "q2": tuple(PASSAGES), "q3": REVERSED}
    assert len(server.requests) == 3, "a refusal is not retried"
    assert tally.unranked == [("q2", 0)]
    assert tally.unranked_windows == tally.repairs["content_filtered"] == 1


def test_rank_counts_a_window_that_a_content_filter_refuses() -> None:
    with (
        scripted_server(one_reply(FILTERED["code"])) as server,
        Reranker("smol", server=server.url) as reranker,
    ):
        hits = reranker.rank("query", ["a", "b"])
    assert [hit.index for hit in hits] == [0, 1]
    assert hits.unranked_windows == hits.repairs["content_filtered"] == 1
