"""The examples of the page *Try*: questions of `rank-k demo` with their passages."""

from __future__ import annotations

from functools import cache
from typing import Any

DEPTH = 12
"""Passages per question, as in `rank-k demo`."""


@cache
def demo_queries() -> list[dict[str, Any]]:
    """Return the featured queries of the demo and their BM25 passages as JSON values.

    The first call takes some seconds.

    Raises:
        MissingExtra: If the extra `data` is not installed.
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
