"""Scheduling: who is asked first, how much is open, in which order results come, what stops the work."""

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
from rank_k.engine import OPEN_PER_SLOT, Engine, Job, QueryResult
from rank_k.errors import ModelError, RequestRejected
from rank_k.journal import Journal
from rank_k.models.mock import ScriptedModel
from rank_k.models.retry import RetryPolicy
from rank_k.strategies import make
from rank_k.strategies.base import Strategy
from rank_k.types import Candidate, OnChunk, Passage, Query, Request, Response, Usage, Window
from rank_k.window.listwise import ListwiseRanker
from tests.support.waiting import PATIENCE, STUCK_SECONDS


class Timed(ScriptedModel):
    """Answers in input order after `seconds(request)`; knows how many questions were open at once."""

    def __init__(self, seconds: Callable[[Request], float] = lambda _: 0.001) -> None:
        super().__init__(lambda request: " > ".join(f"[{i + 1}]" for i in range(len(request.context.doc_ids))))
        self._seconds = seconds
        self.open = self.most_open = 0

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(self._seconds(request))
            return await super().complete(request, on_text)
        finally:
            self.open -= 1


def jobs(sizes: list[int], opened: list[int] | None = None) -> Iterator[Job]:
    for number, size in enumerate(sizes):
        if opened is not None:
            opened.append(number)
        ids = [f"d{i}" for i in range(size)]
        yield Job(
            Query(f"q{number}", f"question {number}"),
            [Candidate(doc_id, -i) for i, doc_id in enumerate(ids)],
            {doc_id: Passage(doc_id, f"text of {doc_id}") for doc_id in ids},
            ("tail",),
        )


def drive(
    model: Any, source: Iterator[Job], *, slots: int = 4, strategy: Strategy | None = None, **options: Any
) -> tuple[list[QueryResult], Engine]:
    async def run() -> tuple[list[QueryResult], Engine]:
        journal = Journal()
        asker = ListwiseRanker(model, journal, retries=RetryPolicy(first=0.001, longest=0.002))
        engine = Engine(asker, strategy or make("sliding"), journal, slots=slots, **options)
        try:
            return [result async for result in engine.run(source)], engine
        finally:
            journal.close()

    return asyncio.run(run())


@settings(max_examples=25)
@given(sizes=st.lists(st.integers(0, 45), max_size=12), slots=st.integers(1, 6))
def test_results_come_in_input_order_and_hold_every_candidate(sizes: list[int], slots: int) -> None:
    model = Timed(lambda request: (hash(request.messages) % 5) / 2000)
    results, engine = drive(model, jobs(sizes), slots=slots)
    assert [result.query_id for result in results] == [f"q{i}" for i in range(len(sizes))]
    for result, size in zip(results, sizes, strict=True):
        assert sorted(result.ranking.doc_ids) == sorted([*(f"d{i}" for i in range(size)), "tail"])
        assert result.ranking.doc_ids[-1] == "tail"
        assert result.finished
    assert model.most_open <= slots
    assert engine.stats.queries == len(sizes)


def test_the_longest_chain_goes_first() -> None:
    model = Timed()
    drive(model, jobs([20, 100, 50, 20]), slots=1)
    asked = [request.context.query_id for request in model.history]
    assert asked[:5] == ["q1"] * 5  # nine windows left; at four left, the fifty take turns with it
    assert asked[-2:] != ["q1", "q1"]


def test_slots_are_filled_and_never_overfilled() -> None:
    model = Timed(lambda _: 0.05)
    drive(model, jobs([100] * 12), slots=8)
    assert model.most_open == 8


def test_no_more_queries_are_open_than_promised() -> None:
    opened: list[int] = []
    most: list[int] = []
    done = 0

    def seconds(request: Request) -> float:
        most.append(len(opened) - done)
        return 0.001

    model = Timed(seconds)

    async def run() -> None:
        nonlocal done
        journal = Journal()
        engine = Engine(ListwiseRanker(model, journal), make("sliding"), journal, slots=2)
        async for _ in engine.run(jobs([30] * 50, opened)):
            done += 1
        journal.close()

    asyncio.run(run())
    assert done == 50
    assert max(most) <= OPEN_PER_SLOT * 2 + 2  # a result or two may be on their way out


def test_the_deadline_leaves_the_best_so_far_for_every_query() -> None:
    requests = itertools.count()
    model = Timed(lambda _: 0.001 if next(requests) < 40 else STUCK_SECONDS)  # the first queries may finish
    started = time.monotonic()
    results, engine = drive(model, jobs([100] * 30), slots=4, deadline=started + 1)
    assert time.monotonic() - started < PATIENCE, "the deadline ends the work, not the model's answer"
    assert [result.query_id for result in results] == [f"q{i}" for i in range(30)]
    assert all(len(result.ranking.doc_ids) == 101 for result in results)
    assert not all(result.finished for result in results)
    assert engine.stats.unfinished == [result.query_id for result in results if not result.finished]
    assert model.open == 0, "what was under way is cancelled"


def test_an_error_that_cannot_be_mended_cancels_the_rest() -> None:
    class Refusing(Timed):
        async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
            if request.context.query_id == "q3":
                raise RequestRejected("no", "yes")
            return await super().complete(request, on_text)

    model = Refusing(lambda _: 0.01)
    with pytest.raises(RequestRejected):
        drive(model, jobs([100] * 10), slots=8)
    assert model.open == 0


def test_a_strategy_that_fails_is_not_swallowed() -> None:
    def broken(candidates: Any, seed: int) -> Any:
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        drive(Timed(), jobs([3]), strategy=broken)


def test_leaving_early_cancels_what_is_under_way() -> None:
    model = Timed(lambda _: 0.01)

    async def run() -> None:
        journal = Journal()
        engine = Engine(ListwiseRanker(model, journal), make("sliding"), journal, slots=4)
        results = engine.run(jobs([20] * 10))
        await anext(results)
        await results.aclose()
        journal.close()

    asyncio.run(run())
    assert model.open == 0
    assert len(model.history) < 10


def test_a_window_that_is_given_up_is_counted() -> None:
    class Faulty(Timed):
        async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
            if request.context.query_id == "q1":
                raise _Broken("broken")
            return await super().complete(request, on_text)

    class _Broken(ModelError):
        retryable = True

    results, engine = drive(Faulty(), jobs([20] * 6), slots=4)
    assert len(results) == 6
    assert engine.stats.repairs["retries_exhausted"] == 1
    assert engine.stats.unranked == [("q1", 0)]


def test_the_journal_keeps_what_each_query_was_and_how_its_ranking_stood(tmp_path: Path) -> None:
    """From the position that the engine was told to begin at, and under the name that a job has."""
    heard: list[tuple[str, int, int]] = []

    def on_window(query_id: str, round_number: int, number: int, window: Window) -> None:
        heard.append((query_id, round_number, len(window.doc_ids)))

    async def run() -> None:
        journal = Journal(tmp_path / "journal.sqlite")
        model = ScriptedModel(lambda request: " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1)))
        engine = Engine(ListwiseRanker(model, journal), make("sliding"), journal, run="r", first=7, on_window=on_window)
        source = [replace(job, name=name) for job, name in zip(jobs([30, 1]), ("named", ""), strict=True)]
        results = [result async for result in engine.run(source)]
        assert [result.query_id for result in results] == ["q0", "q1"]
        _, found = journal.opened("r")
        assert [(q.position, q.query_id, q.text, q.finished) for q in found] == [
            (7, "named", "question 0", True),
            (8, "q1", "question 1", True),
        ]
        before, between = journal.rounds("r", 7)
        assert before.doc_ids == tuple(f"d{i}" for i in range(30))
        assert between.doc_ids == (*before.doc_ids[:10], *reversed(before.doc_ids[10:]))
        assert journal.ranking("r", 7) == results[0].ranking
        assert journal.rounds("r", 8) == []
        assert [record.query_id for record in journal.windows("r")] == ["named"] * 2
        journal.close()

    asyncio.run(run())
    assert heard == [("q0", 0, 20), ("q0", 1, 20)]


def test_rankings_wait_for_their_turn_though_a_temporary_journal_forgets_their_calls() -> None:
    """The first query takes many rounds; the others are done long before and their calls are dropped meanwhile."""
    judgments = {f"q{n}": {f"d{i}": i for i in range(60 if n == 0 else 5)} for n in range(30)}
    run = {query: tuple(Candidate(d, 1 / (i + 1)) for i, d in enumerate(docs)) for query, docs in judgments.items()}
    queries = {query: Query(query, f"text of {query}") for query in run}
    passages = {f"d{i}": Passage(f"d{i}", f"passage {i}") for i in range(60)}

    def backwards(request: Request) -> Response:
        order = " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))
        return Response(order, random.Random(len(model.history)).randbytes(10_000).hex(), "stop", Usage(1))

    found = {}
    for room in (100_000, 2**30):
        model = ScriptedModel(backwards)
        with Reranker(model, concurrency=4, window=10, stride=5) as reranker:
            reranker.journal._max_bytes = room
            found[room] = list(reranker.rerank(run, queries, passages))
            assert (reranker.journal.size_in_bytes < 250_000) == (room == 100_000)
    assert found[100_000] == found[2**30]
    assert [result.query_id for result in found[2**30]] == list(run)
