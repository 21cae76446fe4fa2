"""First-stage runs of the same queries, fused into one ranking each."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rank_k.types import Candidate

RRF_K = 60
"""The constant of reciprocal rank fusion, from Cormack, Clarke and Büttcher (SIGIR 2009), where it was not tuned."""


def reciprocal_rank_fusion(rankings: Iterable[Sequence[str]], k: int = RRF_K) -> list[str]:
    """Ids by the sum of 1 / (k + rank) over the rankings that have them; equal sums in the order first met."""
    scores: defaultdict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, doc_id in enumerate(ranking, 1):
            scores[doc_id] += 1 / (k + rank)
    return sorted(scores, key=lambda doc_id: -scores[doc_id])


class FusedRuns:
    """Several runs by query. They need not have their queries in the same order, and none is held in memory: they
    wait in a temporary file, gone with the process."""

    def __init__(self, runs: Iterable[Iterable[tuple[str, Sequence[Candidate]]]], depth: int) -> None:
        """`depth`: of each run, so many candidates count."""
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE ranked (query_id BLOB, run INTEGER, doc_ids TEXT)")
        self._db.execute("BEGIN")
        for run_number, run in enumerate(runs):
            self._db.executemany(
                "INSERT INTO ranked VALUES (?, ?, ?)",
                (
                    (
                        _query_key(query_id),
                        run_number,
                        json.dumps([candidate.doc_id for candidate in candidates[:depth]]),
                    )
                    for query_id, candidates in run
                ),
            )
        self._db.execute("CREATE INDEX by_query ON ranked (query_id, run)")
        self._db.execute("COMMIT")

    def ranking(self, query_id: str) -> list[str]:
        """All candidates of a query, best first; empty for one that no run has."""
        rows = self._db.execute("SELECT doc_ids FROM ranked WHERE query_id = ? ORDER BY run", (_query_key(query_id),))
        return reciprocal_rank_fusion(json.loads(doc_ids) for (doc_ids,) in rows)

    def close(self) -> None:
        self._db.close()


def _query_key(query_id: str) -> bytes:
    return query_id.encode("utf-8", "surrogatepass")
