"""The journal: every model call in one SQLite file. Caching, resuming, accounting and training data are based on it.

    schema  tables, migrations, opening and checking a file
    calls   calls and their keys
    runs    runs, queries, windows, rounds, rankings and candidate sets

`docs/reference/journal-schema.md` describes every table and column.
"""

from __future__ import annotations

from rank_k.journal.calls import Call, call_key
from rank_k.journal.runs import Journal, QueryRecord, RunRecord, WindowRecord, run_name

__all__ = ["Call", "Journal", "QueryRecord", "RunRecord", "WindowRecord", "call_key", "run_name"]
