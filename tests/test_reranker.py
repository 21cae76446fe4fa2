"""`Reranker`: one query or a run, from sync code, async code, notebooks and threads, with a real HTTP server."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.errors import ConnectionFailed, InputError, MissingWeights, QueryTooLong, RequestRejected
from rank_k.loop_thread import LoopThread
from rank_k.types import Query, RankedHits
from rank_k.window.base import WindowReport
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.request_log import peak_concurrency
from tests.fakes.model_server.running import FakeModelServer
from tests.support.waiting import PATIENCE, STUCK_SECONDS, wait_until

pytestmark = pytest.mark.integration

DATA = make_dataset(8, 30, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
SLOW: dict[str, Any] = {"first_token": 0.05, "per_token": 0.0001}
STUCK: dict[str, Any] = {"first_token": STUCK_SECONDS}


def document_texts(query_id: str) -> list[str]:
    return [DATA.passages[candidate.doc_id].text for candidate in DATA.run[query_id]]


def expected_texts(query_id: str) -> list[str]:
    return [DATA.passages[doc_id].text for doc_id in DATA.perfect(query_id)[:10]]


def first_texts(hits: RankedHits) -> list[str]:
    return [hit.text for hit in hits[:10]]


def has_calls(server: FakeModelServer, calls: int = 1) -> Callable[[], bool]:
    return lambda: len(server.calls) >= calls


def has_cancelled_calls(server: FakeModelServer) -> Callable[[], bool]:
    return lambda: all(call.cancelled for call in server.calls)


# --- runs ---


def test_rerank_yields_every_query_in_the_order_of_the_run(loopback: StartLoopback) -> None:
    with Reranker(server=loopback().url, depth=20) as reranker:
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages))
        assert [result.query_id for result in results] == list(DATA.run)
        for result in results:
            before = [candidate.doc_id for candidate in DATA.run[result.query_id]]
            assert sorted(result.ranking.doc_ids) == sorted(before)
            assert list(result.ranking.doc_ids[20:]) == before[20:]
        assert (reranker.stats.queries, reranker.stats.windows) == (len(DATA.run), len(DATA.run))


def test_rerank_names_queries_and_documents_without_text(loopback: StartLoopback) -> None:
    with Reranker(server=loopback().url) as reranker:
        with pytest.raises(InputError, match="query Q03 of the run has no text"):
            list(reranker.rerank(DATA.run, {q: QUERIES[q] for q in QUERIES if q != "Q03"}, DATA.passages))
        absent = DATA.run["Q02"][4].doc_id
        with pytest.raises(InputError, match=f"document {absent} of query Q02"):
            list(reranker.rerank(DATA.run, QUERIES, {d: DATA.passages[d] for d in DATA.passages if d != absent}))
        assert len(list(reranker.rerank(DATA.run, QUERIES, DATA.passages))) == len(DATA.run), (
            "the reranker is still usable"
        )


def test_rerank_yields_the_best_ranking_so_far_after_max_seconds(loopback: StartLoopback) -> None:
    with Reranker(server=loopback(**STUCK).url) as reranker:
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages, max_seconds=0.2))
        assert [(r.query_id, r.finished) for r in results] == [(query_id, False) for query_id in DATA.run]
        assert reranker.stats.unfinished == list(DATA.run)
        hits = reranker.rank("q", document_texts("Q00"), max_seconds=0.1)
        assert (hits.finished, [hit.index for hit in hits]) == (False, list(range(30)))


def test_rank_counts_preparation_in_max_seconds(loopback: StartLoopback) -> None:
    """The server accepts the connection and sends nothing, or the probe of `reasoning` is slow."""
    with socket.create_server(("127.0.0.1", 0)) as listener, Reranker("m", server=url_of(listener)) as reranker:
        hits = reranker.rank("q", ["a", "b"], max_seconds=0.2)
        assert (hits.finished, [(hit.index, hit.text) for hit in hits]) == (False, [(0, "a"), (1, "b")])
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages, max_seconds=0.2))
        assert [(r.query_id, r.finished) for r in results] == [(query_id, False) for query_id in DATA.run]
    server = loopback(capabilities="raw continue grammar budget", first_token=3.0)
    with Reranker(server=server.url) as reranker:
        reranker.prepare()
        for reasoning in ("off", "auto"):
            assert not reranker.rank("q", ["a", "b"], reasoning=reasoning, max_seconds=0.2).finished
        assert len(server.calls) == 1, "all queries share one probe"
        assert reranker.rank("q", ["mark:a-G1 x", "mark:b-G2 y"], reasoning="off", max_seconds=PATIENCE).finished
        assert len(server.calls) == 3, "the probe continued and its answer is used; the third call probes grammars"


def test_rank_raises_timeouts_of_the_model_itself() -> None:
    class Slow(ScriptedModel):
        async def prepare(self) -> None:
            raise TimeoutError("somewhere within")

    with Reranker(Slow([])) as reranker:
        for seconds in (None, 60):
            with pytest.raises(TimeoutError, match="somewhere within"):
                reranker.rank("q", ["a", "b"], max_seconds=seconds)


def url_of(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_rerank_cancels_calls_in_flight_when_iteration_stops(loopback: StartLoopback) -> None:
    server = loopback(**SLOW)

    def stop_responding(query_id: str, round_number: int, window_number: int, report: WindowReport) -> None:
        if query_id == "Q00" and round_number == 1:  # its last window
            server.change(**STUCK)

    with Reranker(server=server.url, concurrency=2) as reranker:
        for result in reranker.rerank(DATA.run, QUERIES, DATA.passages, on_result=stop_responding):
            assert result.query_id == "Q00"
            wait_until(lambda: sum(call.end is None for call in server.calls) == 2, "no call is in flight")
            break
        wait_until(
            lambda: sum(call.cancelled for call in server.calls) == 2,
            "the server still has calls of a client that is gone",
        )
        server.change(first_token=0.001)
        assert first_texts(reranker.rank("q", document_texts("Q05"))) == expected_texts("Q05"), (
            "the reranker is still usable"
        )


def test_loop_thread_stop_cancels_coroutines_before_cleanup() -> None:
    loop = LoopThread()
    events: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(STUCK_SECONDS)
        finally:
            await asyncio.sleep(0.01)
            events.append("cancelled")

    async def close() -> None:
        events.append("closed")

    future = loop.submit(wait())
    loop.run(asyncio.sleep(0))  # it has started
    loop.stop(close)
    assert (future.cancelled(), events, loop.stopped) == (True, ["cancelled", "closed"], True)


def test_loop_thread_iterate_ends_with_an_error_after_stop() -> None:
    loop = LoopThread()
    events: list[str] = []

    async def count_up() -> AsyncGenerator[int, None]:
        try:
            for number in range(10**9):
                yield number
        finally:
            events.append("source closed")

    async def close() -> None:
        events.append("closed")

    numbers = loop.iterate(count_up(), max_ahead=3)
    assert [next(numbers), next(numbers)] == [0, 1]
    loop.stop(close)
    assert events == ["source closed", "closed"]
    with pytest.raises(InputError, match="closed"):
        next(numbers)


def test_close_cancels_a_running_rerank(loopback: StartLoopback) -> None:
    server = loopback(**STUCK)
    reranker = Reranker(server=server.url)
    results = reranker.rerank(DATA.run, QUERIES, DATA.passages)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(list, results)
        wait_until(has_calls(server, 8), "the server receives no call")
        reranker.close()
        with pytest.raises(CancelledError):
            future.result(timeout=PATIENCE)
    wait_until(has_cancelled_calls(server), "the server still has calls of a client that is gone")


# --- threads and event loops ---


def test_reranker_works_in_sync_code_and_successive_event_loops(loopback: StartLoopback) -> None:
    server = loopback()
    with Reranker(server=server.url) as reranker:
        assert first_texts(reranker.rank("q", document_texts("Q00"))) == expected_texts("Q00")
        for query_id in ("Q01", "Q02"):  # each in an event loop of its own

            async def rank(query_id: str = query_id) -> RankedHits:
                return await reranker.arank("q", document_texts(query_id))

            assert first_texts(asyncio.run(rank())) == expected_texts(query_id)
        assert first_texts(reranker.rank("q", document_texts("Q03"))) == expected_texts("Q03")
    with Reranker(server=server.url) as another:
        assert first_texts(another.rank("q", document_texts("Q00"))) == expected_texts("Q00")


def test_rank_works_inside_a_running_event_loop(loopback: StartLoopback) -> None:
    async def cell() -> tuple[RankedHits, RankedHits, list[Any]]:
        with Reranker(server=loopback().url) as reranker:
            rankings = reranker.rank("q", document_texts("Q00")), await reranker.arank("q", document_texts("Q01"))
            return *rankings, list(reranker.rerank({"Q02": DATA.run["Q02"]}, QUERIES, DATA.passages))

    first, second, [result] = asyncio.run(cell())
    assert (first_texts(first), first_texts(second)) == (expected_texts("Q00"), expected_texts("Q01"))
    assert list(result.ranking.doc_ids[:10]) == DATA.perfect("Q02")[:10]


def test_concurrency_is_shared_by_threads_and_event_loops(loopback: StartLoopback) -> None:
    server = loopback(first_token=0.5)
    ids = list(QUERIES)
    with Reranker(server=server.url, concurrency=3) as reranker, ThreadPoolExecutor(4) as pool:

        async def rank_all(query_ids: Sequence[str]) -> list[RankedHits]:
            return await asyncio.gather(*(reranker.arank("q", document_texts(query_id)) for query_id in query_ids))

        loops = [pool.submit(asyncio.run, rank_all(ids[:3])), pool.submit(asyncio.run, rank_all(ids[3:6]))]
        futures = [pool.submit(reranker.rank, "q", document_texts(query_id)) for query_id in ids[6:]]
        hits = [h for loop in loops for h in loop.result()] + [future.result() for future in futures]
    assert [first_texts(h) for h in hits] == [expected_texts(query_id) for query_id in ids]
    spans = [(call.start, call.end) for call in server.calls if call.end is not None]
    assert len(spans) == 2 * len(ids)
    assert peak_concurrency(spans) == 3


def test_rerank_keeps_concurrent_runs_separate(loopback: StartLoopback) -> None:
    with Reranker(server=loopback(**SLOW).url) as reranker, ThreadPoolExecutor(4) as pool:

        def rerank(query_ids: Iterable[str]) -> dict[str, list[str]]:
            results = reranker.rerank({q: DATA.run[q] for q in query_ids}, QUERIES, DATA.passages)
            return {result.query_id: list(result.ranking.doc_ids[:10]) for result in results}

        parts = [("Q00", "Q01"), ("Q02", "Q03"), ("Q04", "Q05"), ("Q06", "Q07")]
        for part, ranked in zip(parts, pool.map(rerank, parts), strict=True):
            assert ranked == {query_id: DATA.perfect(query_id)[:10] for query_id in part}


def test_arank_cancellation_cancels_the_server_calls(loopback: StartLoopback) -> None:
    server = loopback(**STUCK)
    with Reranker(server=server.url) as reranker:

        async def rank_and_cancel() -> None:
            task = asyncio.create_task(reranker.arank("q", document_texts("Q00")))
            await asyncio.to_thread(wait_until, has_calls(server), "the server receives no call")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(rank_and_cancel())
        wait_until(has_cancelled_calls(server), "the server still has calls of a client that is gone")
        server.change(first_token=0.001)
        assert first_texts(reranker.rank("q", document_texts("Q01"))) == expected_texts("Q01"), (
            "the reranker is still usable"
        )


def test_arank_cancellation_does_not_affect_other_queries(loopback: StartLoopback) -> None:
    """Also if the cancelled query prepares the model for all of them."""
    with Reranker(server=loopback(**SLOW).url) as reranker:

        async def rank_three() -> list[Any]:
            tasks = [
                asyncio.create_task(reranker.arank("q", document_texts(query_id))) for query_id in ("Q00", "Q01", "Q02")
            ]
            await asyncio.sleep(0)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        cancelled, *others = asyncio.run(rank_three())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [first_texts(hits) for hits in others] == [expected_texts("Q01"), expected_texts("Q02")]


# --- preparing and closing ---


def connections_to(server: FakeModelServer) -> int:
    port = urlsplit(server.url).port
    return sum(bool(c.raddr) and c.raddr.port == port for c in psutil.Process().net_connections())


def test_close_frees_thread_and_sockets(loopback: StartLoopback) -> None:
    server, threads = loopback(), threading.active_count()
    with Reranker(server=server.url) as reranker:
        reranker.rank("q", document_texts("Q00"))
        assert threading.active_count() == threads + 1
        assert connections_to(server) > 0
    assert threading.active_count() == threads
    assert connections_to(server) == 0
    reranker.close()  # closing again does nothing
    del reranker
    gc.collect()  # resources that are still open would warn now, and warnings are errors


def test_reranker_closes_when_it_is_collected_as_garbage(loopback: StartLoopback) -> None:
    server, threads = loopback(), threading.active_count()
    reranker = Reranker(server=server.url)
    reranker.rank("q", document_texts("Q00"))
    unreachable = Reranker("m", server="http://127.0.0.1:9/v1")
    with pytest.raises(ConnectionFailed):
        unreachable.rank("q", ["a", "b"])
    del reranker, unreachable
    gc.collect()  # resources that are still open would warn now, and warnings are errors
    wait_until(lambda: threading.active_count() == threads, "the event loop's thread is still running")
    assert connections_to(server) == 0


def test_reranker_closes_when_its_own_thread_collects_it(loopback: StartLoopback) -> None:
    server, threads = loopback(), threading.active_count()
    reranker = Reranker(server=server.url)
    reranker.rank("q", document_texts("Q00"))
    loop = reranker._loop

    async def collect() -> None:
        gc.collect()

    gc.disable()  # so that nothing else collects it first
    try:
        del reranker
        with suppress(CancelledError):  # the loop stops
            loop.submit(collect()).result(timeout=PATIENCE)
    finally:
        gc.enable()
    wait_until(lambda: threading.active_count() == threads, "the event loop's thread is still running")
    wait_until(lambda: connections_to(server) == 0, "a connection is still open")


def test_reranker_works_in_an_async_with_statement(loopback: StartLoopback) -> None:
    async def rank() -> RankedHits:
        async with Reranker(server=loopback().url) as reranker:
            return await reranker.arank("q", document_texts("Q00"), top_n=10)

    assert first_texts(asyncio.run(rank())) == expected_texts("Q00")


def test_reranker_starts_no_thread_before_its_first_use() -> None:
    threads = threading.active_count()
    Reranker(ScriptedModel([])).close()
    with Reranker(ScriptedModel([])):
        assert threading.active_count() == threads


def test_reranker_raises_input_error_after_close() -> None:
    reranker = Reranker(ScriptedModel(["[2] > [1]"]))
    reranker.close()
    with pytest.raises(InputError, match="closed"):
        reranker.rank("q", ["a", "b"])
    with pytest.raises(InputError, match="closed"):
        list(reranker.rerank(DATA.run, QUERIES, DATA.passages))
    with pytest.raises(InputError, match="closed"):
        asyncio.run(reranker.arank("q", ["a", "b"]))


def test_prepare_can_be_retried_after_a_rejected_key(loopback: StartLoopback) -> None:
    server = loopback(api_key="right")
    with Reranker(server=server.url, api_key="wrong") as reranker:
        for _ in range(2):
            with pytest.raises(RequestRejected, match="401"):
                reranker.prepare()
        server.change(api_key="wrong")
        assert first_texts(reranker.rank("q", document_texts("Q00"))) == expected_texts("Q00")


def test_rank_raises_connection_failed_without_a_server() -> None:
    with (
        Reranker("m", server="http://127.0.0.1:9/v1") as reranker,
        pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"),
    ):
        reranker.rank("q", ["a", "b"])


def test_check_raises_query_too_long_before_any_call(loopback: StartLoopback) -> None:
    server = loopback(max_model_len=2048)
    with Reranker(server=server.url) as reranker:
        reranker.check(QUERIES.values())
        with pytest.raises(QueryTooLong, match="why why"):
            reranker.check([*QUERIES.values(), Query("long", "why " * 4000)])
        with pytest.raises(QueryTooLong, match="why why"):
            reranker.rank("why " * 4000, ["a", "b"])
    assert server.calls == []


NUMERIC_OPTIONS = ("depth", "passage_tokens", "max_tokens", "concurrency", "context_length", "window", "stride")


@pytest.mark.parametrize("name", NUMERIC_OPTIONS)
@pytest.mark.parametrize("number", [0, -1])
def test_reranker_rejects_numbers_below_one(name: str, number: int) -> None:
    options: dict[str, Any] = {name: number}
    with pytest.raises(InputError, match=f"{name} is {number}"):
        Reranker(ScriptedModel([]), **options)


def test_reranker_names_the_fetch_command_without_weights() -> None:
    with pytest.raises(MissingWeights, match="rank-k fetch"):
        Reranker()
