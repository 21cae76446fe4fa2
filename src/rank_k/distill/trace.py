"""Candidate sets -> the journal: each set is one window, which a teacher is asked about over the same path as any
reranking, so that budget, retries, cost and going on after an interruption are the same too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from rank_k.distill.candidate_sets import CandidateSet
from rank_k.errors import InputError
from rank_k.models.simulated import Grades, Noise, SimulatedModel
from rank_k.reranker import Reranker
from rank_k.strategies.single import Single
from rank_k.types import Candidate, OnChunk, Passage, Query, Request, RequestContext, Response
from rank_k.window.listwise import ListwiseRanker

LARGEST = 10_000
WHOLE_SET = Single(LARGEST)
"""The strategy: everything in one window."""


class ActiveSets(Mapping[str, Query]):
    """The sets that are being asked about, by id; the rest has not been read yet or is forgotten.

    As a mapping it gives the query of a set, as `Reranker.rerank` takes queries.
    """

    def __init__(self) -> None:
        self._rows: dict[str, CandidateSet] = {}

    def opened(
        self, sets: Iterable[CandidateSet], keep: Callable[[str, Mapping[str, Any]], None]
    ) -> Iterator[tuple[str, tuple[Candidate, ...]]]:
        """The sets as a run, one by one; `keep` is told the facts of each."""
        for row in sets:
            if row.set_id in self._rows:
                continue  # the same set twice in a row
            self._rows[row.set_id] = row
            keep(row.set_id, row.facts)
            yield row.set_id, tuple(Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(row.doc_ids, 1))

    def set_of(self, set_id: str) -> CandidateSet:
        return self._rows[set_id]

    def done(self, set_id: str) -> None:
        self._rows.pop(set_id, None)

    def __getitem__(self, set_id: str) -> Query:
        return Query(set_id, self._rows[set_id].query)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)


class _Passages:
    """The passages of the sets under way, as `Reranker.rerank` takes them."""

    def __init__(self, under_way: ActiveSets) -> None:
        self._under_way = under_way

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        row = self._under_way.set_of(query_id or "")
        return Passage(doc_id, row.passages[row.doc_ids.index(doc_id)])


class SetJudge(SimulatedModel):
    """A simulated judge that is asked about sets: it looks up the grades of their queries, and its calls tell what was
    shown, as those of a real model do."""

    def __init__(self, grades: Grades, noise: Noise | str, set_of: Callable[[str], CandidateSet]) -> None:
        super().__init__(grades, noise)
        self._set_of = set_of

    def request_body(self, request: Request) -> Mapping[str, Any]:
        return {**super().request_body(request), "messages": [message._asdict() for message in request.messages]}

    async def complete(self, request: Request, on_text: OnChunk | None = None) -> Response:
        query_id = self._set_of(request.context.query_id).query_id
        return await super().complete(
            replace(request, context=RequestContext(query_id, request.context.doc_ids)), on_text
        )


def traced(
    reranker: Reranker,
    sets: Iterable[CandidateSet],
    under_way: ActiveSets,
    *,
    token_budget: int | None = None,
    run_name: str = "",
) -> Iterator[str]:
    """Ask `reranker` (its strategy `WHOLE_SET`, its depth `LARGEST`) about every set; yields their ids as they are
    done, in order. Everything is in its journal then: `Journal.asked_sets` gives it back."""
    asker = reranker.ranker
    if reranker.strategy is not WHOLE_SET or reranker.depth < LARGEST or not isinstance(asker, ListwiseRanker):
        raise InputError("a set is one window", "make the reranker with strategy=WHOLE_SET, depth=LARGEST")
    asker.settings = replace(
        asker.settings, agreeing_samples=asker.settings.samples
    )  # every sample is wanted, also of one mind
    results = reranker.rerank(
        under_way.opened(sets, reranker.journal.store_set),
        under_way,
        _Passages(under_way),
        token_budget=token_budget,
        run_name=run_name,
    )
    for result in results:
        under_way.done(result.query_id)
        yield result.query_id
