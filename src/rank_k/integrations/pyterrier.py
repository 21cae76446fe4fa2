"""Rank-K as a transformer of PyTerrier. Needs `pip install 'rank-k[pyterrier]'`."""

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
    """`retriever >> pt.text.get_text(dataset) >> RankKReranker(...)`: result frames with text, reranked.

    The order of the first stage is that of the column `rank`, else that of `score`, else that of the rows. Every column
    is kept; `score` becomes 1 / rank (from 1), and `rank` counts from 0 as everywhere in PyTerrier. All queries of a
    frame are reranked at the same time.

    Args:
        reranker: A reranker, or the model for one.
        text_field: The column of the passages.
        options: The options of a new `Reranker`.
    """

    schematic: ClassVar[Mapping[str, Any]] = {"label": "Rank-K", "help_url": None}  # else PyTerrier's site is asked

    def __init__(self, reranker: RerankerSource = None, *, text_field: str = "text", **options: Any) -> None:
        self.reranker = resolve_reranker(reranker, options)
        self.text_field = text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
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
    """The rows of a frame, by query id and document id, as a source of passages."""

    def __init__(self, frame: pd.DataFrame, text_field: str) -> None:
        query_ids, doc_ids = frame["qid"].map(str), frame["docno"].map(str)
        self._texts = frame[text_field].tolist()
        self.queries = dict(zip(query_ids, frame["query"], strict=True))
        self.by_query: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for row, (query_id, doc_id) in enumerate(zip(query_ids, doc_ids, strict=True)):
            if self.by_query[query_id].setdefault(doc_id, row) != row:
                raise InputError(f"query {query_id} has document {doc_id} twice", "drop one: what is its rank?")

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        text = self._texts[self.by_query[query_id or ""][doc_id]]
        if not isinstance(text, str):
            raise InputError(f"document {doc_id} of query {query_id} has no text", "add it with pt.text.get_text")
        return Passage(doc_id, text)
