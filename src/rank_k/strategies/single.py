"""One window: the head of the list. The rest keeps its order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rank_k.strategies.base import StrategyGenerator, Ties, WindowStrategy, record_consensus, tied_ranking
from rank_k.types import Candidate, Round, Window


@dataclass(frozen=True)
class Single(WindowStrategy):
    """The first `window` candidates, once."""

    def __call__(self, candidates: Sequence[Candidate], seed: int) -> StrategyGenerator:
        ids = [candidate.doc_id for candidate in candidates]
        ties: Ties = {}
        head = ids[: self.window]
        if len(head) > 1:
            window = Window(tuple(head), (1, len(head)))
            [result] = yield Round((window,), tied_ranking(ties, ids), 1)
            ids[: self.window] = record_consensus(ties, result).doc_ids
        return tied_ranking(ties, ids)
