"""Rank-K as a transformer of PyTerrier. Requires `pip install 'rank-k[pyterrier]'`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, ClassVar

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, rerank, resolve_reranker
from rank_k.optional_deps import load
from rank_k.types import Passage

load("pyterrier")
import pandas as pd
import pyterrier as pt


class RankKReranker(pt.Transformer):
    """Reranks result frames with text: `retriever >> pt.text.get_text(dataset) >> RankKReranker(...)`.

    The first-stage order is given by the column `rank`, or else by `score`, or else by the order of the rows. The
    result has all columns of the input. Its `rank` counts from 0, as everywhere in PyTerrier, and its `score` is
    1 / (rank + 1). All queries of a frame are reranked concurrently, with at most `concurrency` requests in flight in
    total.

    Args:
        reranker: A reranker, or the model for a new one.
        text_field: The column with the text of the passages.
        options: The options of a new `Reranker`.
    """

    # If `help_url` is not set, PyTerrier sends a request to its website.
    schematic: ClassVar[Mapping[str, Any]] = {"label": "Rank-K", "help_url": None}

    def __init__(self, reranker: RerankerSource = None, *, text_field: str = "text", **options: Any) -> None:
        self.reranker = resolve_reranker(reranker, options)
        self.text_field = text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of a result frame in their new order."""
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field], context=self)
        column = next((name for name in ("rank", "score") if name in inp.columns), None)
        frame = inp if column is None else inp.sort_values(column, ascending=column == "rank", kind="stable")
        rows = _Rows(frame, self.text_field)
        order: list[int] = []
        ranks: list[int] = []
        for query_id, doc_ids in rerank(self.reranker, rows.by_query, rows.queries, rows):
            order += [rows.by_query[query_id][doc_id] for doc_id in doc_ids]
            ranks += range(len(doc_ids))
        ranked = frame.iloc[order].reset_index(drop=True)
        return ranked.assign(score=[1 / (rank + 1) for rank in ranks], rank=[r + pt.model.FIRST_RANK for r in ranks])


class _Rows:
    """The rows of a frame by query id and document id, as a source of passages."""

    def __init__(self, frame: pd.DataFrame, text_field: str) -> None:
        query_ids, doc_ids = frame["qid"].map(str), frame["docno"].map(str)
        self._texts = frame[text_field].tolist()
        self.queries = dict(zip(query_ids, frame["query"], strict=True))
        self.by_query: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for row, (query_id, doc_id) in enumerate(zip(query_ids, doc_ids, strict=True)):
            if self.by_query[query_id].setdefault(doc_id, row) != row:
                raise InputError(f"query {query_id} has document {doc_id} twice", "remove one of the rows")

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        text = self._texts[self.by_query[query_id or ""][doc_id]]
        if not isinstance(text, str):
            raise InputError(f"document {doc_id} of query {query_id} has no text", "add the text with pt.text.get_text")
        return Passage(doc_id, text)
