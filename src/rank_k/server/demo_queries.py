"""The demo's questions with their passages, for the page to try the server on."""

from __future__ import annotations

from functools import cache
from typing import Any

DEPTH = 12
"""Passages per question, as `rank-k demo` takes."""


@cache
def demo_queries() -> list[dict[str, Any]]:
    """Return the demo's featured queries and their BM25 passages, as JSON values.

    The first call takes seconds. Raises `MissingExtra` without the extra `data`.
    """
    from rank_k.data.collections import demo
    from rank_k.retrieval.bm25 import retrieve

    texts = {passage.doc_id: passage.text for passage in demo.load_passages()}
    queries = {question.query.query_id: question.query for question in demo.load_questions() if question.featured}
    run = retrieve(queries.values(), demo.load_passages(), depth=DEPTH)
    return [
        {"query": queries[query_id].text, "passages": [texts[candidate.doc_id] for candidate in candidates]}
        for query_id, candidates in run
    ]
