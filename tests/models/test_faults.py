"""What goes wrong at a server, against a real one: where the reply can be recovered, the ranking is that of the
clean run; where it cannot, the window keeps its order and is counted. Nothing is silent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rank_k.engine import RunStats
from rank_k.errors import ConnectionFailed, InputError, RequestRejected, RetriesExhausted
from rank_k.models.retry import RetryPolicy
from rank_k.reranker import Reranker
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.running import FakeModelServer
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

DATASET = make_dataset(6, 60, strict=True)
QUERIES = {query.query_id: query for query in DATASET.queries}
WINDOW_COUNT = 6 * 5
QUICK_RETRIES = RetryPolicy(first=0.001, longest=0.01)


def rerank(server: FakeModelServer, **options: Any) -> tuple[dict[str, tuple[str, ...]], RunStats]:
    options = {"model": "oracle", "concurrency": 8, "retries": QUICK_RETRIES, **options}
    with Reranker(server=server.url, **options) as reranker:
        results = {r.query_id: r.ranking.doc_ids for r in reranker.rerank(DATASET.run, QUERIES, DATASET.passages)}
        return results, reranker.stats


@pytest.fixture(scope="module")
def clean_rankings() -> dict[str, tuple[str, ...]]:
    """The ranking without faults: known without asking, since the oracle is perfect and passages can rise."""
    from benchmarks.ideal import simulate_dataset

    rankings = simulate_dataset(DATASET, 8).rankings
    return {query_id: ranking.doc_ids for query_id, ranking in zip(QUERIES, rankings, strict=True)}


def test_rerank_without_faults_ranks_the_best_ten_first(
    loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]]
) -> None:
    results, stats = rerank(loopback())
    assert results == clean_rankings
    assert all(list(clean_rankings[query_id][:10]) == DATASET.perfect(query_id)[:10] for query_id in QUERIES)
    assert (stats.windows, stats.unranked_windows, dict(stats.repairs)) == (WINDOW_COUNT, 0, {})


@pytest.mark.parametrize(
    "quirk", ["inline", "missing_open", "reasoning", "reasoning_content", "reasoning_details", "none"]
)
@pytest.mark.parametrize("ragged", [False, True])
def test_rerank_reads_the_trace_from_every_field(
    loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]], quirk: str, ragged: bool
) -> None:
    results, stats = rerank(loopback(quirk=quirk, ragged=ragged))
    assert results == clean_rankings
    assert not stats.unranked_windows
    assert (stats.usage.reasoning_tokens > 0) == (quirk != "none")


@pytest.mark.parametrize("quirk", ["inline", "missing_open", "reasoning", "reasoning_content"])
def test_rerank_forces_answers_after_truncated_reasoning(
    loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]], quirk: str
) -> None:
    """28 % of thoughts cut; with a reasoning field, content is then null."""
    server = loopback(quirk=quirk, cut=0.28)
    results, stats = rerank(server)
    assert results == clean_rankings
    forced_answers = stats.repairs["forced_answers"]
    assert 0 < forced_answers == stats.repairs["truncated"] == sum(call.n_messages == 3 for call in server.calls)
    assert not stats.unranked_windows


def test_rerank_forces_every_answer(loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]]) -> None:
    results, stats = rerank(loopback(cut=1.0))
    assert results == clean_rankings
    assert stats.repairs["forced_answers"] == WINDOW_COUNT


def test_rerank_parses_prose_with_bare_lists(
    loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]]
) -> None:
    results, stats = rerank(loopback(prose=0.28))
    assert results == clean_rankings
    assert not stats.repairs


def test_rerank_waits_out_overload(loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]]) -> None:
    """11 % of windows answered 429 six times, with a message full of digits."""
    server = loopback(http_429=(0.11, 6), retry_after="0")
    results, stats = rerank(server)
    assert results == clean_rankings
    refused = sum(call.status == 429 for call in server.calls)
    assert refused >= 6
    assert refused % 6 == 0
    assert not stats.unranked_windows


@pytest.mark.parametrize("fault", ["http_500", "drop", "error_in_stream", "bad_json"])
def test_rerank_retries_broken_responses(
    loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]], fault: str
) -> None:
    plan: dict[str, Any] = {fault: (0.3, 2)}
    server = loopback(**plan)
    results, stats = rerank(server)
    assert results == clean_rankings
    assert any(call.fault == fault for call in server.calls)
    assert not stats.unranked_windows


def test_rerank_accepts_invalid_utf8_without_a_retry(
    loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]]
) -> None:
    server = loopback(bad_utf8=(1.0, 1))
    results, stats = rerank(server)
    assert results == clean_rankings
    assert stats.calls == WINDOW_COUNT == len(server.calls)


def test_rerank_survives_all_faults_together(
    loopback: StartLoopback, clean_rankings: dict[str, tuple[str, ...]]
) -> None:
    server = loopback(cut=0.2, prose=0.2, http_429=(0.1, 3), http_500=0.1, drop=0.1, quirk="reasoning_content")
    results, stats = rerank(server)
    assert results == clean_rankings
    assert not stats.unranked_windows


def test_rerank_lists_unparsable_windows_and_keeps_their_order(loopback: StartLoopback) -> None:
    results, stats = rerank(loopback(garbage=1.0))
    assert results == {query_id: tuple(c.doc_id for c in run) for query_id, run in DATASET.run.items()}
    assert stats.unranked_windows == WINDOW_COUNT == stats.repairs["unranked"]
    assert {query_id for query_id, _ in stats.unranked} == set(QUERIES)


def test_rerank_counts_windows_with_exhausted_retries(loopback: StartLoopback) -> None:
    results, stats = rerank(loopback(http_500=(0.1, 99)))
    assert set(results) == set(QUERIES)
    assert 0 < stats.repairs["retries_exhausted"] == stats.unranked_windows < WINDOW_COUNT
    for query_id, doc_ids in results.items():
        assert sorted(doc_ids) == sorted(c.doc_id for c in DATASET.run[query_id])


def test_rerank_stops_when_every_request_fails(loopback: StartLoopback) -> None:
    with pytest.raises(RetriesExhausted, match="no answer after 6 tries"):
        rerank(loopback(http_500=(1.0, 10**6)))


@pytest.mark.parametrize(
    ("plan", "options", "error", "message"),
    [
        ({"refuse": 401}, {}, RequestRejected, "--api-key-env"),
        ({"api_key": "right"}, {"api_key": "wrong"}, RequestRejected, "--api-key-env"),
        ({}, {"model": "other"}, InputError, "it has: oracle"),
        ({"refuse": 404}, {}, RequestRejected, "check --model"),
        ({"redirect": "http://127.0.0.1:9/v1"}, {}, RequestRejected, "give that address"),
    ],
)
def test_rerank_fails_at_once_on_permanent_errors(
    loopback: StartLoopback, plan: dict[str, Any], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    server = loopback(**plan)
    with pytest.raises(error, match=message):
        rerank(server, **options)
    assert len(server.calls) <= 8


def test_rank_reports_an_unreachable_server() -> None:
    with (
        pytest.raises(ConnectionFailed, match="no server responds"),
        Reranker("m", server="http://127.0.0.1:9/v1") as reranker,
    ):
        reranker.rank("q", ["a", "b"])


def test_rank_truncates_passages_to_the_context_length(loopback: StartLoopback) -> None:
    """Passages far too long for the context are cut evenly; no request is refused."""
    server = loopback(max_model_len=3000, capabilities="raw continue grammar")
    long = [f"{DATASET.passages[d].text} " + "many words of no importance " * 300 for d in list(DATASET.passages)[:20]]
    with Reranker("oracle", server=server.url, max_tokens=1000) as reranker:
        hits = reranker.rank("q", long)
    assert len(hits) == 20
    assert hits.repairs["context_truncated"] == 20
    assert not hits.unranked_windows
    assert {call.status for call in server.calls} == {200}


def test_arank_cancellation_closes_the_request(loopback: StartLoopback) -> None:
    server = loopback(first_token=0.05, per_token=5.0)

    async def cancel_request() -> None:
        with Reranker("oracle", server=server.url) as reranker:
            task = asyncio.create_task(reranker.arank("q", ["a", "b"]))
            await asyncio.to_thread(wait_until, lambda: bool(server.calls), "nothing is asked")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel_request())
    wait_until(lambda: server.calls[0].cancelled, "the server works for nobody")
