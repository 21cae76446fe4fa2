"""The calls that a run is expected to make, and the time that is left."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext

import pytest

from rank_k.cli import run_progress
from rank_k.cli.run_progress import RunProgress, describe_depth, describe_run
from rank_k.models.simulated import SimulatedModel
from rank_k.reranker import Reranker
from rank_k.run_job import rerank_run
from rank_k.simulation.noise_file import noise_by_name
from rank_k.types import Candidate, Passage, Query

DEPTH = 40
RUN = {f"q{number}": [Candidate(f"d{rank}", 1 / rank) for rank in range(1, DEPTH + 1)] for number in range(3)}
QUERIES = {query_id: Query(query_id, f"what is {query_id}") for query_id in RUN}
PASSAGES = {f"d{rank}": Passage(f"d{rank}", f"text {rank}") for rank in range(1, DEPTH + 1)}


@pytest.fixture
def reranker() -> Iterator[Reranker]:
    grades: Mapping[str, Mapping[str, int]] = {query_id: {"d3": 1} for query_id in RUN}
    with Reranker(SimulatedModel(grades, noise_by_name("none")), strategy="sliding", concurrency=1) as reranker:
        yield reranker


class Passages:
    """A source of the passages."""

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        return PASSAGES[doc_id]


class Clock:
    """A clock that moves by `step` seconds at each look."""

    def __init__(self, step: float) -> None:
        self._step = step
        self._now = 0.0

    def monotonic(self) -> float:
        self._now += self._step
        return self._now


def test_expected_calls_are_those_that_the_run_makes(reranker: Reranker) -> None:
    progress = RunProgress(reranker, len(RUN))
    assert (progress.calls, progress.seconds_left) == (0, None)
    for _ in reranker.rerank(progress.watch(RUN.items()), QUERIES, PASSAGES, on_result=progress.add_result):
        assert progress.expected_calls == 9, "three windows for each of three queries"
    assert progress.calls == reranker.stats.calls == 9


def test_time_left_is_estimated_after_ten_calls(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = RunProgress(reranker, 100)
    monkeypatch.setattr(run_progress, "time", Clock(0))
    progress._started = -60.0  # a minute ago
    next(progress.watch(RUN.items()))
    reranker.stats.calls = reranker.stats.new_calls = reranker.journal.stored_calls = 9
    assert progress.seconds_left is None
    reranker.stats.calls = reranker.stats.new_calls = reranker.journal.stored_calls = 10
    progress._new_passages = progress._ranked_passages = 200  # 20 in each window
    assert progress.expected_calls == 300
    assert progress.seconds_left == pytest.approx(60 / 10 * 290)
    reranker.stats.queries = 3
    reranker.stats.windows = 10
    reranker.stats.unranked_windows = 1
    state = describe_run(progress)
    assert (state.completed, state.total) == (10, 300)
    counts = "3/100 queries, 10/300 calls, 0.2 calls/s, 0 tokens out, 1 window unranked"
    assert state.details == f"{counts}, about 29 min 00 s left"


def test_calls_of_windows_that_are_not_ranked_yet_are_counted(reranker: Reranker) -> None:
    """The embedded model makes a call for each passage of a window of query likelihood."""
    progress = RunProgress(reranker, 1)
    reranker.journal.stored_calls = 37
    assert (progress.calls, progress.new_calls) == (37, 37)
    assert describe_run(progress).details.startswith("0/1 query, 37/37 calls, ")


def test_depth_notice_compares_with_depth_20(reranker: Reranker, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = RunProgress(reranker, 3)
    next(progress.watch(RUN.items()))
    reranker.journal.stored_calls = 10
    assert describe_depth(progress) == "", "another model than the embedded one"
    monkeypatch.setattr(run_progress, "EmbeddedModel", SimulatedModel)
    monkeypatch.setattr(run_progress, "time", Clock(0))
    progress._started = -5.0
    assert describe_depth(progress) == (
        "the embedded model takes about 30 s per query at this depth; --depth 20 would take about 10 s"
    )


def test_rerank_run_reports_to_the_progress(reranker: Reranker) -> None:
    progress = RunProgress(reranker, len(RUN))
    rankings = rerank_run(
        reranker,
        RUN.items(),
        QUERIES,
        Passages(),
        query_count=len(RUN),
        settings={},
        show_progress=lambda *_: nullcontext(progress),
    )
    assert [query_id for query_id, _ in rankings] == list(RUN)
    assert describe_run(progress).details.startswith("3/3 queries, 9/9 calls, ")
