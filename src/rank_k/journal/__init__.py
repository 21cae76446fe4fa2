"""The journal: one SQLite file with every model call. Caching, resuming, accounting and training data use it.

    schema  the tables and migrations; opens and checks files
    calls   model calls and their keys
    batches requests in batch files
    runs    runs, queries, windows, rounds, rankings and candidate sets
    shared  a journal that also finds the calls of other journals

`docs/reference/journal-schema.md` describes every table and column.
"""

from __future__ import annotations

from rank_k.journal.calls import Call, call_key
from rank_k.journal.runs import Journal, QueryRecord, RunRecord, WindowRecord, run_name

__all__ = ["Call", "Journal", "QueryRecord", "RunRecord", "WindowRecord", "call_key", "run_name"]
