"""Scheduling: which window comes first, how many queries are open, the order of results, what stops the work."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rank_k import Reranker
from rank_k.engine import OPEN_QUERIES_PER_SLOT, Engine, Job, QueryResult
from rank_k.errors import ModelError, RequestRejected
from rank_k.journal import Journal
from rank_k.models.cached import CachedModel
from rank_k.models.mock import ScriptedModel
from rank_k.models.retry import RetryPolicy
from rank_k.strategies import make_strategy
from rank_k.strategies.base import Strategy
from rank_k.types import Candidate, OnChunk, Passage, Query, Request, Response, Usage, Window
from rank_k.window.listwise import ListwiseRanker, ListwiseSettings
from tests.support.waiting import PATIENCE, STUCK_SECONDS


class TimedModel(ScriptedModel):
    """Answers in input order after `seconds(request)`, and counts the requests in flight."""

    def __init__(self, seconds: Callable[[Request], float] = lambda _: 0.001) -> None:
        super().__init__(lambda request: " > ".join(f"[{i + 1}]" for i in range(len(request.context.doc_ids))))
        self._seconds = seconds
        self.in_flight = self.max_in_flight = 0

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await asyncio.sleep(self._seconds(request))
            return await super().complete(request, on_chunk)
        finally:
            self.in_flight -= 1


def make_jobs(sizes: list[int], opened_positions: list[int] | None = None) -> Iterator[Job]:
    for number, size in enumerate(sizes):
        if opened_positions is not None:
            opened_positions.append(number)
        ids = [f"d{i}" for i in range(size)]
        yield Job(
            Query(f"q{number}", f"question {number}"),
            [Candidate(doc_id, -i) for i, doc_id in enumerate(ids)],
            {doc_id: Passage(doc_id, f"text of {doc_id}") for doc_id in ids},
            ("tail",),
            f"q{number}",
        )


def run_engine(
    model: Any,
    jobs: Iterator[Job],
    *,
    concurrency: int = 4,
    strategy: Strategy | None = None,
    listwise: ListwiseSettings = ListwiseSettings(),
    **options: Any,
) -> tuple[list[QueryResult], Engine]:
    async def run() -> tuple[list[QueryResult], Engine]:
        journal = Journal()
        ranker = ListwiseRanker(CachedModel(model, journal, RetryPolicy(first=0.001, longest=0.002)), listwise)
        engine = Engine(ranker, strategy or make_strategy("sliding"), journal, concurrency=concurrency, **options)
        try:
            return [result async for result in engine.run(jobs)], engine
        finally:
            journal.close()

    return asyncio.run(run())


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 45), max_size=12), concurrency=st.integers(1, 6))
def test_engine_returns_every_candidate_in_input_order_of_queries(sizes: list[int], concurrency: int) -> None:
    model = TimedModel(lambda request: (hash(request.messages) % 5) / 2000)
    results, engine = run_engine(model, make_jobs(sizes), concurrency=concurrency)
    assert [result.query_id for result in results] == [f"q{i}" for i in range(len(sizes))]
    for result, size in zip(results, sizes, strict=True):
        assert sorted(result.ranking.doc_ids) == sorted([*(f"d{i}" for i in range(size)), "tail"])
        assert result.ranking.doc_ids[-1] == "tail"
        assert result.finished
    assert model.max_in_flight <= concurrency
    assert engine.stats.queries == len(sizes)


def test_engine_starts_with_the_query_with_most_windows() -> None:
    model = TimedModel()
    run_engine(model, make_jobs([20, 100, 50, 20]), concurrency=1)
    query_ids = [request.context.query_id for request in model.history]
    assert query_ids[:5] == ["q1"] * 5  # nine windows left; at four left, the fifty take turns with it
    assert query_ids[-2:] != ["q1", "q1"]


def test_engine_reaches_and_never_exceeds_concurrency() -> None:
    model = TimedModel(lambda _: 0.05)
    run_engine(model, make_jobs([100] * 12), concurrency=8)
    assert model.max_in_flight == 8


def test_engine_limits_the_number_of_open_queries() -> None:
    opened_positions: list[int] = []
    open_counts: list[int] = []
    finished_count = 0

    def seconds(request: Request) -> float:
        open_counts.append(len(opened_positions) - finished_count)
        return 0.001

    model = TimedModel(seconds)

    async def run() -> None:
        nonlocal finished_count
        journal = Journal()
        engine = Engine(ListwiseRanker(CachedModel(model, journal)), make_strategy("sliding"), journal, concurrency=2)
        async for _ in engine.run(make_jobs([30] * 50, opened_positions)):
            finished_count += 1
        journal.close()

    asyncio.run(run())
    assert finished_count == 50
    assert max(open_counts) <= OPEN_QUERIES_PER_SLOT * 2 + 2  # a result or two may be on their way out


def test_engine_returns_the_best_ranking_so_far_at_the_deadline() -> None:
    requests = itertools.count()
    model = TimedModel(lambda _: 0.001 if next(requests) < 40 else STUCK_SECONDS)  # the first queries may finish
    started = time.monotonic()
    results, engine = run_engine(model, make_jobs([100] * 30), concurrency=4, deadline=started + 1)
    assert time.monotonic() - started < PATIENCE, "the deadline ends the work, not the model's answer"
    assert [result.query_id for result in results] == [f"q{i}" for i in range(30)]
    assert all(len(result.ranking.doc_ids) == 101 for result in results)
    assert not all(result.finished for result in results)
    assert engine.stats.unfinished == [result.query_id for result in results if not result.finished]
    assert model.in_flight == 0, "windows in flight are cancelled"


def test_engine_cancels_all_windows_after_a_fatal_error() -> None:
    class RejectingModel(TimedModel):
        async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
            if request.context.query_id == "q3":
                raise RequestRejected("no", "yes")
            return await super().complete(request, on_chunk)

    model = RejectingModel(lambda _: 0.01)
    with pytest.raises(RequestRejected):
        run_engine(model, make_jobs([100] * 10), concurrency=8)
    assert model.in_flight == 0


def test_engine_raises_the_errors_of_strategies() -> None:
    def broken(candidates: Any, seed: int) -> Any:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        run_engine(TimedModel(), make_jobs([3]), strategy=broken)


def test_engine_cancels_windows_in_flight_when_iteration_stops() -> None:
    model = TimedModel(lambda _: 0.01)

    async def run() -> None:
        journal = Journal()
        engine = Engine(ListwiseRanker(CachedModel(model, journal)), make_strategy("sliding"), journal, concurrency=4)
        results = engine.run(make_jobs([20] * 10))
        await anext(results)
        await results.aclose()
        journal.close()

    asyncio.run(run())
    assert model.in_flight == 0
    assert len(model.history) < 10


def test_engine_counts_windows_whose_retries_are_exhausted() -> None:
    class FailingModel(TimedModel):
        async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
            if request.context.query_id == "q1":
                raise RetryableError("broken")
            return await super().complete(request, on_chunk)

    class RetryableError(ModelError):
        retryable = True

    results, engine = run_engine(FailingModel(), make_jobs([20] * 6), concurrency=4)
    assert len(results) == 6
    assert engine.stats.repairs["retries_exhausted"] == 1
    assert engine.stats.unranked == [("q1", 0)]


def test_engine_counts_a_window_as_unranked_if_no_sample_is_usable() -> None:
    """q0: all samples are usable. q1: one of three. q2: none."""

    def respond(request: Request) -> str:
        usable_samples = {"q0": 3, "q1": 1, "q2": 0}[request.context.query_id]
        return "[2] > [1]" if request.sample < usable_samples else "I cannot tell."

    listwise = ListwiseSettings(samples=3)
    _, engine = run_engine(ScriptedModel(respond), make_jobs([20] * 3), listwise=listwise)
    assert engine.stats.repairs["unranked"] == 2 + 3, "samples"
    assert engine.stats.unranked_windows == 1
    assert engine.stats.unranked == [("q2", 0)]


def test_engine_stores_queries_rounds_and_rankings_in_the_journal(tmp_path: Path) -> None:
    """Positions start at `first_position`; a job's name replaces its query's id."""
    windows: list[tuple[str, int, int]] = []

    def on_window(query_id: str, round_number: int, number: int, window: Window) -> None:
        windows.append((query_id, round_number, len(window.doc_ids)))

    async def run() -> None:
        journal = Journal(tmp_path / "journal.sqlite")
        model = ScriptedModel(lambda request: " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1)))
        engine = Engine(
            ListwiseRanker(CachedModel(model, journal)),
            make_strategy("sliding"),
            journal,
            run="r",
            first_position=7,
            on_window=on_window,
        )
        jobs = [replace(job, journal_name=name) for job, name in zip(make_jobs([30, 1]), ("named", "q1"), strict=True)]
        results = [result async for result in engine.run(jobs)]
        assert [result.query_id for result in results] == ["q0", "q1"]
        _, records = journal.find_queries("r")
        assert [(q.position, q.query_id, q.text, q.finished) for q in records] == [
            (7, "named", "question 0", True),
            (8, "q1", "question 1", True),
        ]
        before, between = journal.rounds("r", 7)
        assert before.doc_ids == tuple(f"d{i}" for i in range(30))
        assert between.doc_ids == (*before.doc_ids[:10], *reversed(before.doc_ids[10:]))
        assert journal.find_ranking("r", 7) == results[0].ranking
        assert journal.rounds("r", 8) == []
        assert [record.query_id for record in journal.windows("r")] == ["named"] * 2
        journal.close()

    asyncio.run(run())
    assert windows == [("q0", 0, 20), ("q0", 1, 20)]


def test_engine_keeps_finished_rankings_while_a_temporary_journal_drops_calls() -> None:
    """The first query takes many rounds; the others finish long before it, and their calls are dropped."""
    judgments = {f"q{n}": {f"d{i}": i for i in range(60 if n == 0 else 5)} for n in range(30)}
    run = {query: tuple(Candidate(d, 1 / (i + 1)) for i, d in enumerate(docs)) for query, docs in judgments.items()}
    queries = {query: Query(query, f"text of {query}") for query in run}
    passages = {f"d{i}": Passage(f"d{i}", f"passage {i}") for i in range(60)}

    def reverse_order(request: Request) -> Response:
        order = " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))
        return Response(order, random.Random(len(model.history)).randbytes(10_000).hex(), "stop", Usage(1))

    results = {}
    for max_bytes in (100_000, 2**30):
        model = ScriptedModel(reverse_order)
        with Reranker(model, concurrency=4, window=10, stride=5) as reranker:
            reranker.journal._max_bytes = max_bytes
            results[max_bytes] = list(reranker.rerank(run, queries, passages))
            assert (reranker.journal.size_in_bytes < 250_000) == (max_bytes == 100_000)
    assert results[100_000] == results[2**30]
    assert [result.query_id for result in results[2**30]] == list(run)
