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
from tests.fakes.loopback import Loopback, make_queries
from tests.support.waiting import until

pytestmark = pytest.mark.integration

DATA = make_queries(6, 60, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
WINDOWS = 6 * 5
QUICK = RetryPolicy(first=0.001, longest=0.01)


def rerank(server: Loopback, **options: Any) -> tuple[dict[str, tuple[str, ...]], RunStats]:
    options = {"model": "oracle", "concurrency": 8, "retries": QUICK, **options}
    with Reranker(server=server.url, **options) as reranker:
        results = {r.query_id: r.ranking.doc_ids for r in reranker.rerank(DATA.run, QUERIES, DATA.passages)}
        return results, reranker.stats


@pytest.fixture(scope="module")
def clean() -> dict[str, tuple[str, ...]]:
    """The ranking without faults: known without asking, since the oracle is perfect and passages can rise."""
    from benchmarks.ideal import simulate_dataset

    rankings = simulate_dataset(DATA, 8).rankings
    return {query_id: ranking.doc_ids for query_id, ranking in zip(QUERIES, rankings, strict=True)}


def test_the_clean_run_puts_the_best_ten_first(loopback: StartLoopback, clean: dict[str, tuple[str, ...]]) -> None:
    results, tally = rerank(loopback())
    assert results == clean
    assert all(list(clean[query_id][:10]) == DATA.perfect(query_id)[:10] for query_id in QUERIES)
    assert (tally.windows, tally.unranked_windows, dict(tally.repairs)) == (WINDOWS, 0, {})


@pytest.mark.parametrize(
    "quirk", ["inline", "missing_open", "reasoning", "reasoning_content", "reasoning_details", "none"]
)
@pytest.mark.parametrize("ragged", [False, True])
def test_every_place_for_a_trace(
    loopback: StartLoopback, clean: dict[str, tuple[str, ...]], quirk: str, ragged: bool
) -> None:
    results, tally = rerank(loopback(quirk=quirk, ragged=ragged))
    assert results == clean
    assert not tally.unranked_windows
    assert (tally.usage.reasoning_tokens > 0) == (quirk != "none")


@pytest.mark.parametrize("quirk", ["inline", "missing_open", "reasoning", "reasoning_content"])
def test_cut_thoughts_are_closed_and_their_answer_asked_for(
    loopback: StartLoopback, clean: dict[str, tuple[str, ...]], quirk: str
) -> None:
    """28 % of thoughts cut; with a reasoning field, content is then null."""
    server = loopback(quirk=quirk, cut=0.28)
    results, tally = rerank(server)
    assert results == clean
    closed = tally.repairs["forced_answers"]
    assert 0 < closed == tally.repairs["truncated"] == sum(call.n_messages == 3 for call in server.calls)
    assert not tally.unranked_windows


def test_all_thoughts_cut(loopback: StartLoopback, clean: dict[str, tuple[str, ...]]) -> None:
    results, tally = rerank(loopback(cut=1.0))
    assert results == clean
    assert tally.repairs["forced_answers"] == WINDOWS


def test_prose_answers_with_bare_lists(loopback: StartLoopback, clean: dict[str, tuple[str, ...]]) -> None:
    results, tally = rerank(loopback(prose=0.28))
    assert results == clean
    assert not tally.repairs


def test_overload_is_waited_out(loopback: StartLoopback, clean: dict[str, tuple[str, ...]]) -> None:
    """11 % of windows answered 429 six times, with a message full of digits."""
    server = loopback(http_429=(0.11, 6), retry_after="0")
    results, tally = rerank(server)
    assert results == clean
    refused = sum(call.status == 429 for call in server.calls)
    assert refused >= 6
    assert refused % 6 == 0
    assert not tally.unranked_windows


@pytest.mark.parametrize("fault", ["http_500", "drop", "error_in_stream", "bad_json"])
def test_broken_replies_are_asked_again(loopback: StartLoopback, clean: dict[str, tuple[str, ...]], fault: str) -> None:
    plan: dict[str, Any] = {fault: (0.3, 2)}
    server = loopback(**plan)
    results, tally = rerank(server)
    assert results == clean
    assert any(call.fault == fault for call in server.calls)
    assert not tally.unranked_windows


def test_bytes_that_are_no_text_cost_no_second_call(loopback: StartLoopback, clean: dict[str, tuple[str, ...]]) -> None:
    server = loopback(bad_utf8=(1.0, 1))
    results, tally = rerank(server)
    assert results == clean
    assert tally.calls == WINDOWS == len(server.calls)


def test_all_at_once(loopback: StartLoopback, clean: dict[str, tuple[str, ...]]) -> None:
    server = loopback(cut=0.2, prose=0.2, http_429=(0.1, 3), http_500=0.1, drop=0.1, quirk="reasoning_content")
    results, tally = rerank(server)
    assert results == clean
    assert not tally.unranked_windows


def test_nonsense_keeps_the_order_and_is_named(loopback: StartLoopback) -> None:
    results, tally = rerank(loopback(garbage=1.0))
    assert results == {query_id: tuple(c.doc_id for c in run) for query_id, run in DATA.run.items()}
    assert tally.unranked_windows == WINDOWS == tally.repairs["unranked"]
    assert {query_id for query_id, _ in tally.unranked} == set(QUERIES)


def test_one_window_given_up_is_counted_and_the_rest_goes_on(loopback: StartLoopback) -> None:
    results, tally = rerank(loopback(http_500=(0.1, 99)))
    assert set(results) == set(QUERIES)
    assert 0 < tally.repairs["retries_exhausted"] == tally.unranked_windows < WINDOWS
    for query_id, doc_ids in results.items():
        assert sorted(doc_ids) == sorted(c.doc_id for c in DATA.run[query_id])


def test_a_server_that_is_gone_ends_the_run(loopback: StartLoopback) -> None:
    with pytest.raises(RetriesExhausted, match="no answer after 6 tries"):
        rerank(loopback(http_500=(1.0, 10**6)))


@pytest.mark.parametrize(
    ("plan", "options", "error", "words"),
    [
        ({"refuse": 401}, {}, RequestRejected, "--api-key-env"),
        ({"api_key": "right"}, {"api_key": "wrong"}, RequestRejected, "--api-key-env"),
        ({}, {"model": "other"}, InputError, "it has: oracle"),
        ({"refuse": 404}, {}, RequestRejected, "check --model"),
        ({"redirect": "http://127.0.0.1:9/v1"}, {}, RequestRejected, "give that address"),
    ],
)
def test_what_asking_again_cannot_mend_ends_at_once(
    loopback: StartLoopback, plan: dict[str, Any], options: dict[str, Any], error: type[Exception], words: str
) -> None:
    server = loopback(**plan)
    with pytest.raises(error, match=words):
        rerank(server, **options)
    assert len(server.calls) <= 8


def test_nobody_there() -> None:
    with (
        pytest.raises(ConnectionFailed, match="nobody answers"),
        Reranker("m", server="http://127.0.0.1:9/v1") as reranker,
    ):
        reranker.rank("q", ["a", "b"])


def test_the_context_is_shared_so_that_the_server_never_refuses(loopback: StartLoopback) -> None:
    """Passages far too long for the context are cut evenly; no request is refused."""
    server = loopback(max_model_len=3000, abilities="raw continue grammar")
    long = [f"{DATA.passages[d].text} " + "many words of no importance " * 300 for d in list(DATA.passages)[:20]]
    with Reranker("oracle", server=server.url, max_tokens=1000) as reranker:
        hits = reranker.rank("q", long)
    assert len(hits) == 20
    assert hits.repairs["context_truncated"] == 20
    assert not hits.unranked_windows
    assert {call.status for call in server.calls} == {200}


def test_a_cut_stream_is_noticed_when_cancelled(loopback: StartLoopback) -> None:
    server = loopback(first_token=0.05, per_token=5.0)

    async def leave() -> None:
        with Reranker("oracle", server=server.url) as reranker:
            task = asyncio.create_task(reranker.arank("q", ["a", "b"]))
            await asyncio.to_thread(until, lambda: bool(server.calls), "nothing is asked")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(leave())
    until(lambda: server.calls[0].cancelled, "the server works for nobody")
