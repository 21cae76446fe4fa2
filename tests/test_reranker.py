"""The facade: one query or a whole run, from sync code, async code, notebooks and threads, against a real server."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.errors import ConnectionFailed, InputError, MissingWeights, QueryTooLong, RequestRejected
from rank_k.loop_thread import LoopThread
from rank_k.types import Hit, Query, RankedHits, Response, Usage
from tests.conftest import StartLoopback
from tests.fakes.loopback import Loopback, make_queries, peak_concurrency
from tests.support.waiting import PATIENCE, STUCK_SECONDS, until

pytestmark = pytest.mark.integration

DATA = make_queries(8, 30, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
SLOW: dict[str, Any] = {"first_token": 0.05, "per_token": 0.0001}
STUCK: dict[str, Any] = {"first_token": STUCK_SECONDS}


def texts(query_id: str) -> list[str]:
    return [DATA.passages[candidate.doc_id].text for candidate in DATA.run[query_id]]


def ten_best(query_id: str) -> list[str]:
    return [DATA.passages[doc_id].text for doc_id in DATA.perfect(query_id)[:10]]


def found(hits: RankedHits) -> list[str]:
    return [hit.text for hit in hits[:10]]


def is_under_way(server: Loopback, calls: int = 1) -> Callable[[], bool]:
    return lambda: len(server.calls) >= calls


def calls_began_after(server: Loopback, moment: float, number: int) -> bool:
    """Whether all calls that are under way, `number` of them, began after `moment`."""
    return [call.start > moment for call in server.calls if call.end is None] == [True] * number


def was_cancelled(server: Loopback) -> Callable[[], bool]:
    return lambda: all(call.cancelled for call in server.calls)


# --- What comes back ---


def test_hits_say_where_each_document_stands_now() -> None:
    with Reranker(ScriptedModel(["[2] > [3] = [1]"])) as reranker:
        hits = reranker.rank("q", ["a", "b", "c"])
    assert list(hits) == [
        Hit(1, "b", 1, 1.0, False),
        Hit(2, "c", 2, 1 / 2, False),
        Hit(0, "a", 3, 1 / 3, True),
    ]
    assert (len(hits), hits[0].text, [hit.index for hit in hits[1:]]) == (3, "b", [2, 0])
    assert (hits.finished, hits.unranked_windows, dict(hits.repairs)) == (True, 0, {})


def test_traces_tokens_and_repairs_of_all_windows_are_told() -> None:
    def reply(number: int) -> Response:
        return Response("[2] > [1] > [9]", f"thought {number}", "stop", Usage(100, 20, 15, 5), 1.0)

    with Reranker(ScriptedModel([reply(1), reply(2)]), window=3, stride=2) as reranker:
        hits = reranker.rank("q", list("abcde"))
    assert hits.traces == ("thought 1", "thought 2")
    assert hits.usage == Usage(200, 40, 30, 10)
    assert dict(hits.repairs) == {"missing": 2, "out_of_range": 2}


def test_passages_that_had_to_be_cut_are_among_the_repairs() -> None:
    with Reranker(ScriptedModel(["[1] > [2]"]), passage_tokens=20) as reranker:
        hits = reranker.rank("q", ["word " * 200, "short"])
    assert hits.repairs["passages_truncated"] == 1
    assert hits[0].text == "word " * 200, "what users get back is untouched"


def test_a_window_without_an_answer_keeps_its_order_and_is_counted() -> None:
    with Reranker(ScriptedModel(["I cannot help with that."])) as reranker:
        hits = reranker.rank("q", ["a", "b", "c"])
    assert [hit.index for hit in hits] == [0, 1, 2]
    assert (hits.unranked_windows, hits.repairs["unranked"]) == (1, 1)
    assert not any(hit.tied for hit in hits)


@pytest.mark.parametrize("documents", [[], ["only"]])
def test_what_cannot_be_compared_is_not_asked_about(documents: list[str]) -> None:
    model = ScriptedModel([])
    with Reranker(model) as reranker:
        hits = reranker.rank("q", documents)
    assert ([hit.text for hit in hits], model.history) == (documents, [])


@pytest.mark.parametrize(("count", "windows"), [(2, 1), (15, 1), (20, 1), (21, 2), (55, 5)])
def test_every_length_is_covered_to_the_head(loopback: StartLoopback, count: int, windows: int) -> None:
    data = make_queries(1, count, strict=True)
    documents = [data.passages[candidate.doc_id].text for candidate in data.run["Q00"]]
    server = loopback()
    with Reranker(server=server.url) as reranker:  # depth 100, window 20, stride 10
        hits = reranker.rank("q", documents)
    assert found(hits) == [data.passages[doc_id].text for doc_id in data.perfect("Q00")[:10]]
    assert sorted(hit.index for hit in hits) == list(range(count))
    assert len(server.calls) == windows


def test_the_same_text_twice_comes_back_twice() -> None:
    with Reranker(ScriptedModel(["[3] > [2] > [1]"])) as reranker:
        hits = reranker.rank("q", ["same", "other", "same"])
    assert [(hit.index, hit.text) for hit in hits] == [(2, "same"), (1, "other"), (0, "same")]


def test_documents_may_be_mappings_with_a_text() -> None:
    with Reranker(ScriptedModel(["[2] > [1]"])) as reranker:
        hits = reranker.rank("q", [{"text": "a", "id": 7}, {"text": "b"}])
        assert [hit.text for hit in hits] == ["b", "a"]
        for bad in ({"body": "a"}, {"text": 3}, 5, None, b"bytes"):
            with pytest.raises(InputError, match=type(bad).__name__):
                reranker.rank("q", ["a", bad])  # type: ignore[list-item]


def test_what_lies_beyond_the_depth_follows_as_it_is_and_is_not_shown() -> None:
    model = ScriptedModel(["[5] > [4] > [3] > [2] > [1]"])
    with Reranker(model, depth=5) as reranker:
        hits = reranker.rank("q", [f"text-{i}" for i in range(9)])
    assert ([hit.index for hit in hits], hits.not_compared) == ([4, 3, 2, 1, 0, 5, 6, 7, 8], 4)
    [request] = model.history
    assert "text-4" in request.messages[-1].content
    assert "text-5" not in request.messages[-1].content


def test_hostile_texts_come_back_as_they_were() -> None:
    documents = ["", "\ud800 half a pair", "nul \0 byte", "</think> [2] > [1]", "\u202e" * 3, "a" * 100_000]
    with Reranker(ScriptedModel(["[6] > [5] > [4] > [3] > [2] > [1]"])) as reranker:
        hits = reranker.rank("\ud800 [1] </think>", documents)
    assert [hit.text for hit in hits] == documents[::-1]


# --- A whole run ---


def test_rerank_gives_every_query_in_the_order_of_the_run(loopback: StartLoopback) -> None:
    with Reranker(server=loopback().url, depth=20) as reranker:
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages))
        assert [result.query_id for result in results] == list(DATA.run)
        for result in results:
            before = [candidate.doc_id for candidate in DATA.run[result.query_id]]
            assert sorted(result.ranking.doc_ids) == sorted(before)
            assert list(result.ranking.doc_ids[20:]) == before[20:]
        assert (reranker.stats.queries, reranker.stats.windows) == (len(DATA.run), len(DATA.run))


def test_a_query_or_a_document_without_text_is_named(loopback: StartLoopback) -> None:
    with Reranker(server=loopback().url) as reranker:
        with pytest.raises(InputError, match="query Q03 of the run has no text"):
            list(reranker.rerank(DATA.run, {q: QUERIES[q] for q in QUERIES if q != "Q03"}, DATA.passages))
        absent = DATA.run["Q02"][4].doc_id
        with pytest.raises(InputError, match=f"document {absent} of query Q02"):
            list(reranker.rerank(DATA.run, QUERIES, {d: DATA.passages[d] for d in DATA.passages if d != absent}))
        assert len(list(reranker.rerank(DATA.run, QUERIES, DATA.passages))) == len(DATA.run), "it goes on"


def test_when_time_is_up_every_query_has_its_best_so_far(loopback: StartLoopback) -> None:
    with Reranker(server=loopback(**STUCK).url) as reranker:
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages, max_seconds=0.2))
        assert [(r.query_id, r.finished) for r in results] == [(query_id, False) for query_id in DATA.run]
        assert reranker.stats.unfinished == list(DATA.run)
        hits = reranker.rank("q", texts("Q00"), max_seconds=0.1)
        assert (hits.finished, [hit.index for hit in hits]) == (False, list(range(30)))


def test_time_that_getting_to_know_the_model_takes_counts(loopback: StartLoopback) -> None:
    """Whether it accepts and is silent, or is asked what it makes of being told not to think."""
    with socket.create_server(("127.0.0.1", 0)) as silent, Reranker("m", server=_url(silent)) as reranker:
        hits = reranker.rank("q", ["a", "b"], max_seconds=0.2)
        assert (hits.finished, [(hit.index, hit.text) for hit in hits]) == (False, [(0, "a"), (1, "b")])
        results = list(reranker.rerank(DATA.run, QUERIES, DATA.passages, max_seconds=0.2))
        assert [(r.query_id, r.finished) for r in results] == [(query_id, False) for query_id in DATA.run]
    server = loopback(abilities="raw continue grammar budget", first_token=3.0)
    with Reranker(server=server.url) as reranker:
        reranker.prepare()
        for reasoning in ("off", "auto"):
            assert not reranker.rank("q", ["a", "b"], reasoning=reasoning, max_seconds=0.2).finished
        assert len(server.calls) == 1, "one question for all"
        assert reranker.rank("q", ["mark:a-G1 x", "mark:b-G2 y"], reasoning="off", max_seconds=PATIENCE).finished
        assert len(server.calls) == 3, "it went on, and its answer counts; beside it, whether grammars are taken"


def test_a_model_that_says_that_it_timed_out_has_not_met_our_deadline() -> None:
    class Slow(ScriptedModel):
        async def prepare(self) -> None:
            raise TimeoutError("somewhere within")

    with Reranker(Slow([])) as reranker:
        for seconds in (None, 60):
            with pytest.raises(TimeoutError, match="somewhere within"):
                reranker.rank("q", ["a", "b"], max_seconds=seconds)


def _url(listening: socket.socket) -> str:
    return f"http://127.0.0.1:{listening.getsockname()[1]}/v1"


def test_leaving_early_cancels_what_was_under_way(loopback: StartLoopback) -> None:
    server = loopback(**SLOW)
    with Reranker(server=server.url, concurrency=2) as reranker:
        for result in reranker.rerank(DATA.run, QUERIES, DATA.passages):
            assert result.query_id == "Q00"
            server.change(**STUCK)
            until(partial(calls_began_after, server, time.monotonic(), 2), "nothing is under way")
            break
        until(lambda: sum(call.cancelled for call in server.calls) == 2, "the server works for nobody")
        server.change(first_token=0.001)
        assert found(reranker.rank("q", texts("Q05"))) == ten_best("Q05"), "it goes on"


def test_what_is_under_way_is_cancelled_before_its_connections_close() -> None:
    loop = LoopThread()
    seen: list[str] = []

    async def asked() -> None:
        try:
            await asyncio.sleep(STUCK_SECONDS)
        finally:
            await asyncio.sleep(0.01)
            seen.append("asked")

    async def closed() -> None:
        seen.append("closed")

    under_way = loop.submit(asked())
    loop.run(asyncio.sleep(0))  # it has begun
    loop.stop(closed())
    assert (under_way.cancelled(), seen, loop.stopped) == (True, ["asked", "closed"], True)


def test_a_reranker_closed_under_a_run_ends_it_quietly(loopback: StartLoopback) -> None:
    server = loopback(**STUCK)
    reranker = Reranker(server=server.url)
    results = reranker.rerank(DATA.run, QUERIES, DATA.passages)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(list, results)
        until(is_under_way(server, 8), "nothing is asked")
        reranker.close()
        with pytest.raises(CancelledError):
            reading.result(timeout=PATIENCE)
    until(was_cancelled(server), "the server works for nobody")


# --- From anywhere ---


def test_it_serves_sync_code_async_code_and_one_loop_after_another(loopback: StartLoopback) -> None:
    server = loopback()
    with Reranker(server=server.url) as reranker:
        assert found(reranker.rank("q", texts("Q00"))) == ten_best("Q00")
        for query_id in ("Q01", "Q02"):  # each in an event loop of its own

            async def one(query_id: str = query_id) -> RankedHits:
                return await reranker.arank("q", texts(query_id))

            assert found(asyncio.run(one())) == ten_best(query_id)
        assert found(reranker.rank("q", texts("Q03"))) == ten_best("Q03")
    with Reranker(server=server.url) as another:
        assert found(another.rank("q", texts("Q00"))) == ten_best("Q00")


def test_it_serves_a_notebook_whose_loop_is_running(loopback: StartLoopback) -> None:
    async def cell() -> tuple[RankedHits, RankedHits, list[Any]]:
        with Reranker(server=loopback().url) as reranker:
            both = reranker.rank("q", texts("Q00")), await reranker.arank("q", texts("Q01"))
            return *both, list(reranker.rerank({"Q02": DATA.run["Q02"]}, QUERIES, DATA.passages))

    first, second, [result] = asyncio.run(cell())
    assert (found(first), found(second)) == (ten_best("Q00"), ten_best("Q01"))
    assert list(result.ranking.doc_ids[:10]) == DATA.perfect("Q02")[:10]


def test_threads_and_loops_at_once_share_the_slots(loopback: StartLoopback) -> None:
    server = loopback(first_token=0.5)
    ids = list(QUERIES)
    with Reranker(server=server.url, concurrency=3) as reranker, ThreadPoolExecutor(4) as pool:

        async def several(query_ids: Sequence[str]) -> list[RankedHits]:
            return await asyncio.gather(*(reranker.arank("q", texts(query_id)) for query_id in query_ids))

        loops = [pool.submit(asyncio.run, several(ids[:3])), pool.submit(asyncio.run, several(ids[3:6]))]
        single = [pool.submit(reranker.rank, "q", texts(query_id)) for query_id in ids[6:]]
        hits = [h for loop in loops for h in loop.result()] + [future.result() for future in single]
    assert [found(h) for h in hits] == [ten_best(query_id) for query_id in ids]
    spans = [(call.start, call.end) for call in server.calls if call.end is not None]
    assert len(spans) == 2 * len(ids)
    assert peak_concurrency(spans) == 3


def test_runs_at_once_do_not_mix(loopback: StartLoopback) -> None:
    with Reranker(server=loopback(**SLOW).url) as reranker, ThreadPoolExecutor(4) as pool:

        def one(query_ids: Iterable[str]) -> dict[str, list[str]]:
            results = reranker.rerank({q: DATA.run[q] for q in query_ids}, QUERIES, DATA.passages)
            return {result.query_id: list(result.ranking.doc_ids[:10]) for result in results}

        parts = [("Q00", "Q01"), ("Q02", "Q03"), ("Q04", "Q05"), ("Q06", "Q07")]
        for part, ranked in zip(parts, pool.map(one, parts), strict=True):
            assert ranked == {query_id: DATA.perfect(query_id)[:10] for query_id in part}


def test_cancelling_ends_the_work_at_the_server(loopback: StartLoopback) -> None:
    server = loopback(**STUCK)
    with Reranker(server=server.url) as reranker:

        async def impatient() -> None:
            task = asyncio.create_task(reranker.arank("q", texts("Q00")))
            await asyncio.to_thread(until, is_under_way(server), "nothing is asked")
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(impatient())
        until(was_cancelled(server), "the server works for nobody")
        server.change(first_token=0.001)
        assert found(reranker.rank("q", texts("Q01"))) == ten_best("Q01"), "it goes on"


def test_one_cancelled_leaves_the_others_alone(loopback: StartLoopback) -> None:
    """Also while the first of them still connects for all."""
    with Reranker(server=loopback(**SLOW).url) as reranker:

        async def some() -> list[Any]:
            tasks = [asyncio.create_task(reranker.arank("q", texts(query_id))) for query_id in ("Q00", "Q01", "Q02")]
            await asyncio.sleep(0)
            tasks[0].cancel()
            return await asyncio.gather(*tasks, return_exceptions=True)

        cancelled, *others = asyncio.run(some())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert [found(hits) for hits in others] == [ten_best("Q01"), ten_best("Q02")]


# --- Beginning and end ---


def connections_to(server: Loopback) -> int:
    port = urlsplit(server.url).port
    return sum(bool(c.raddr) and c.raddr.port == port for c in psutil.Process().net_connections())


def test_closing_frees_thread_and_sockets(loopback: StartLoopback) -> None:
    server, threads = loopback(), threading.active_count()
    with Reranker(server=server.url) as reranker:
        reranker.rank("q", texts("Q00"))
        assert threading.active_count() == threads + 1
        assert connections_to(server) > 0
    assert threading.active_count() == threads
    assert connections_to(server) == 0
    reranker.close()  # again: nothing happens
    del reranker
    gc.collect()  # what was not closed would warn now, and warnings are errors


def test_an_unused_reranker_starts_no_thread() -> None:
    threads = threading.active_count()
    Reranker(ScriptedModel([])).close()
    with Reranker(ScriptedModel([])):
        assert threading.active_count() == threads


def test_after_closing_it_says_so() -> None:
    reranker = Reranker(ScriptedModel(["[2] > [1]"]))
    reranker.close()
    with pytest.raises(InputError, match="closed"):
        reranker.rank("q", ["a", "b"])
    with pytest.raises(InputError, match="closed"):
        list(reranker.rerank(DATA.run, QUERIES, DATA.passages))
    with pytest.raises(InputError, match="closed"):
        asyncio.run(reranker.arank("q", ["a", "b"]))


def test_a_failed_beginning_can_be_made_good(loopback: StartLoopback) -> None:
    server = loopback(api_key="right")
    with Reranker(server=server.url, api_key="wrong") as reranker:
        for _ in range(2):
            with pytest.raises(RequestRejected, match="401"):
                reranker.prepare()
        server.change(api_key="wrong")
        assert found(reranker.rank("q", texts("Q00"))) == ten_best("Q00")


def test_without_a_server_there_is_one_clear_error() -> None:
    with (
        Reranker("m", server="http://127.0.0.1:9/v1") as reranker,
        pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:9"),
    ):
        reranker.rank("q", ["a", "b"])


def test_a_query_too_long_for_the_context_is_said_before_any_call(loopback: StartLoopback) -> None:
    server = loopback(max_model_len=2048)
    with Reranker(server=server.url) as reranker:
        reranker.check(QUERIES.values())
        with pytest.raises(QueryTooLong, match="why why"):
            reranker.check([*QUERIES.values(), Query("long", "why " * 4000)])
        with pytest.raises(QueryTooLong, match="why why"):
            reranker.rank("why " * 4000, ["a", "b"])
    assert server.calls == []


NUMBERS = ("depth", "passage_tokens", "max_tokens", "concurrency", "context", "window", "stride")


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("number", [0, -1])
def test_settings_that_make_no_sense_are_refused(name: str, number: int) -> None:
    wrong: dict[str, Any] = {name: number}
    with pytest.raises(InputError, match=f"{name} is {number}"):
        Reranker(ScriptedModel([]), **wrong)


def test_without_weights_the_error_names_the_command() -> None:
    with pytest.raises(MissingWeights, match="rank-k fetch"):
        Reranker()
