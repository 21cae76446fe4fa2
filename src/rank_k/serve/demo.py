"""The demo's questions with their passages, for the page to try the server on."""

from __future__ import annotations

from functools import cache
from typing import Any

DEPTH = 12
"""Passages per question, as `rank-k demo` takes."""


@cache
def questions() -> list[dict[str, Any]]:
    """Some seconds of work at the first call. Raises `MissingExtra` without the extra `data`."""
    from rank_k.data import python_docs
    from rank_k.first_stage import retrieve

    texts = {passage.doc_id: passage.text for passage in python_docs.passages()}
    asked = {q.query.query_id: q.query for q in python_docs.questions() if q.featured}
    found = retrieve(asked.values(), python_docs.passages(), depth=DEPTH)
    return [
        {"query": asked[query_id].text, "passages": [texts[candidate.doc_id] for candidate in candidates]}
        for query_id, candidates in found
    ]
