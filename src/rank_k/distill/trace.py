"""Trace candidate sets: a teacher ranks each set as one window, and the journal stores its reasoning.

Tracing uses the same code as reranking. Budgets, retries, costs and resuming therefore work in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from rank_k.distill.candidate_sets import CandidateSet
from rank_k.errors import InputError
from rank_k.models.simulated import Grades, Noise, SimulatedModel
from rank_k.reranker import Reranker
from rank_k.run_job import ShowProgress, no_progress, rerank_run
from rank_k.strategies.single import Single
from rank_k.types import Candidate, OnChunk, Passage, Query, Request, RequestContext, Response
from rank_k.window.listwise import ListwiseRanker

MAX_SET_SIZE = 10_000
SINGLE_WINDOW = Single(MAX_SET_SIZE)
"""The strategy of tracing: each set is one window."""


class ActiveSets:
    """The sets that are being ranked. Only these sets are in memory.

    Attributes:
        queries: The query of each set by the id of the set, as `Reranker.rerank` expects it.
    """

    def __init__(self) -> None:
        self.queries: dict[str, Query] = {}
        self._candidate_sets: dict[str, CandidateSet] = {}

    def add_sets(
        self, sets: Iterable[CandidateSet], store_set: Callable[[str, Mapping[str, Any]], None]
    ) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        """Yield each set as (set id, candidates), like the queries of a run, and pass its metadata to `store_set`."""
        for candidate_set in sets:
            set_id = candidate_set.set_id
            if set_id in self.queries:
                continue  # the same set is already being ranked
            self.queries[set_id] = Query(set_id, candidate_set.query)
            self._candidate_sets[set_id] = candidate_set
            store_set(set_id, candidate_set.metadata)
            yield set_id, tuple(Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(candidate_set.doc_ids, 1))

    def get_set(self, set_id: str) -> CandidateSet:
        return self._candidate_sets[set_id]

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return a passage of the set whose id is `query_id`. This method makes the object a `PassageSource`."""
        candidate_set = self._candidate_sets[query_id or ""]
        return Passage(doc_id, candidate_set.passages[candidate_set.doc_ids.index(doc_id)])

    def remove(self, set_id: str) -> None:
        del self.queries[set_id], self._candidate_sets[set_id]


class SimulatedTeacher(SimulatedModel):
    """A simulated model for candidate sets. It uses the judgments of a set's query. Its calls contain the prompt."""

    def __init__(self, grades: Grades, noise: Noise | str, get_set: Callable[[str], CandidateSet]) -> None:
        super().__init__(grades, noise)
        self._get_set = get_set

    def request_body(self, request: Request) -> Mapping[str, Any]:
        return {**super().request_body(request), "messages": [message._asdict() for message in request.messages]}

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        query_id = self._get_set(request.context.query_id).query_id
        return await super().complete(
            replace(request, context=RequestContext(query_id, request.context.doc_ids)), on_chunk
        )


def trace_sets(
    reranker: Reranker,
    sets: Iterable[CandidateSet],
    active_sets: ActiveSets,
    *,
    set_count: int = 0,
    settings: Mapping[str, Any] = MappingProxyType({}),
    show_progress: ShowProgress = no_progress,
    token_budget: int | None = None,
) -> Iterator[str]:
    """Rank every set as one window, and yield the ids of the finished sets in order.

    The reasoning and the rankings are stored in the journal. `Journal.sets_with_calls` reads them.

    Args:
        reranker: A reranker with the strategy `SINGLE_WINDOW`, the depth `MAX_SET_SIZE` and the method "listwise".
        sets: The candidate sets.
        active_sets: Contains each set while it is ranked.
        set_count: The number of sets, for the progress display.
        settings: The settings that the journal stores for this run.
        show_progress: Shows the progress (default: no display).
        token_budget: The number of tokens after which no further set is started (default: no limit).
    """
    ranker = reranker.ranker
    if (
        reranker.strategy is not SINGLE_WINDOW
        or reranker.options.depth < MAX_SET_SIZE
        or not isinstance(ranker, ListwiseRanker)
    ):
        raise InputError(
            "trace_sets needs a reranker that ranks a set as one window",
            'give strategy=SINGLE_WINDOW, depth=MAX_SET_SIZE, method="listwise"',
        )
    # Request all samples, even if the first ones agree.
    ranker.settings = replace(ranker.settings, agreeing_samples=ranker.settings.samples)
    run = active_sets.add_sets(sets, reranker.journal.store_set)
    rankings = rerank_run(
        reranker,
        run,
        active_sets.queries,
        active_sets,
        query_count=set_count,
        settings=settings,
        token_budget=token_budget,
        show_progress=show_progress,
    )
    for set_id, _ in rankings:
        active_sets.remove(set_id)
        yield set_id
