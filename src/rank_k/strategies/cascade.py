"""Two strategies in one: a first look at each passage by itself, and comparison from the order that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rank_k.records import Candidate, Ranking, Round, Window
from rank_k.strategies.consensus import consensus
from rank_k.strategies.protocol import Steps, Strategy


@dataclass(frozen=True)
class Cascade:
    """All candidates by likelihood; then `then`, for which the order of that is what the first stage's is elsewhere.

    It has no name in `STRATEGIES`: `Reranker(by="both")` makes one of any strategy.
    """

    then: Strategy

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> Steps:
        ids = tuple(candidate.doc_id for candidate in candidates)
        later = next(self.then(candidates, seed), None) if len(ids) > 1 else None
        if later is not None:
            window = Window(ids, (1, len(ids)), by="likelihood")
            [outcome] = yield Round((window,), Ranking.of(ids), 1 + later.windows_left)
            ids = consensus(outcome).doc_ids
        return (yield from self.then([Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(ids, 1)], seed))
