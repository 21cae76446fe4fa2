"""Reciprocal rank fusion of first-stage runs."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rank_k.data.lines import id_key
from rank_k.types import Candidate

RRF_K = 60
"""The constant of reciprocal rank fusion in Cormack, Clarke and Büttcher (SIGIR 2009)."""


def reciprocal_rank_fusion(rankings: Iterable[Sequence[str]], k: int = RRF_K) -> list[str]:
    """Return document ids, sorted by the sum of 1 / (k + rank) over all rankings, highest first.

    Args:
        rankings: Rankings of document ids, best first. Documents with equal sums are in the order of their first
            appearance: the documents of the first ranking come first, then the new ones of the second, and so on.
        k: The constant (default: 60).
    """
    scores: defaultdict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, doc_id in enumerate(ranking, 1):
            scores[doc_id] += 1 / (k + rank)
    return sorted(scores, key=lambda doc_id: -scores[doc_id])


class FusedRuns:
    """Several runs, fused query by query. The order of the queries may differ between runs.

    The runs are stored in a temporary file, not in memory. The file is deleted when the process ends.

    Args:
        runs: The runs: pairs of query id and candidates.
        depth: Number of candidates per query that are used from each run.
    """

    def __init__(self, runs: Iterable[Iterable[tuple[str, Sequence[Candidate]]]], depth: int) -> None:
        self._db = sqlite3.connect("", isolation_level=None)
        self._db.execute("CREATE TABLE ranked (query_id BLOB, run INTEGER, doc_ids TEXT)")
        self._db.execute("BEGIN")
        for run_number, run in enumerate(runs):
            rows = (
                (id_key(query_id), run_number, json.dumps([candidate.doc_id for candidate in candidates[:depth]]))
                for query_id, candidates in run
            )
            self._db.executemany("INSERT INTO ranked VALUES (?, ?, ?)", rows)
        self._db.execute("CREATE INDEX by_query ON ranked (query_id, run)")
        self._db.execute("COMMIT")

    def ranking(self, query_id: str) -> list[str]:
        """Return all candidates of a query, best first. The list is empty if no run has the query."""
        rows = self._db.execute("SELECT doc_ids FROM ranked WHERE query_id = ? ORDER BY run", (id_key(query_id),))
        return reciprocal_rank_fusion(json.loads(doc_ids) for (doc_ids,) in rows)

    def close(self) -> None:
        self._db.close()
