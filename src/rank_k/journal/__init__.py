"""The journal: every call to a model in one SQLite file, for caching, resuming, accounting and training data.

    schema  the tables and their migrations; opening and checking a file
    calls   storing and finding calls, and the keys that they are found by
    runs    runs, queries, windows, rounds, rankings and candidate sets

`docs/reference/journal-schema.md` describes every table and column.
"""

from __future__ import annotations

from rank_k.journal.calls import Call, call_key
from rank_k.journal.runs import Journal, QueryRecord, RunRecord, WindowRecord, run_name

__all__ = ["Call", "Journal", "QueryRecord", "RunRecord", "WindowRecord", "call_key", "run_name"]
