"""Rank-K as a transformer of PyTerrier. Needs `pip install 'rank-k[pyterrier]'`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, rerank, resolve_reranker
from rank_k.optional_deps import load
from rank_k.types import Candidate, Passage, Query

if TYPE_CHECKING:
    import pandas as pd
    import pyterrier as pt
else:
    pt = load("pyterrier")


class RankKReranker(pt.Transformer):
    """`retriever >> pt.text.get_text(dataset) >> RankKReranker(...)`: result frames with text, reranked.

    Of a frame the first stage's order is taken from `rank`, else from `score`, else as it comes. Every column is kept;
    `score` becomes 1 / rank (rank from 1) and `rank` counts from 0 as PyTerrier's do. All queries of a frame are worked
    on at once. `reranker`: a ready one, or the model for one; `options` are then `Reranker`'s. `text_field`: the
    column that holds the passages.
    """

    schematic: ClassVar[Mapping[str, Any]] = {"label": "Rank-K", "help_url": None}  # else PyTerrier's site is asked

    def __init__(self, reranker: RerankerSource = None, *, text_field: str = "text", **options: Any) -> None:
        self.reranker = resolve_reranker(reranker, options)
        self.text_field = text_field

    def transform(self, inp: pd.DataFrame) -> pd.DataFrame:
        pt.validate.result_frame(inp, extra_columns=["query", self.text_field], context=self)
        frame = _in_first_stage_order(inp)
        rows = _Rows(frame, self.text_field)
        order: list[int] = []
        ranks: list[int] = []
        for result in rerank(self.reranker, rows.run(), rows.queries, rows) if len(frame) else ():
            positions = rows.rows_by_query[result.query_id]
            order += [positions[doc_id] for doc_id in result.ranking.doc_ids]
            ranks += range(len(positions))
        ranked = frame.iloc[order].reset_index(drop=True)
        return ranked.assign(score=[1 / (rank + 1) for rank in ranks], rank=[r + pt.model.FIRST_RANK for r in ranks])


class _Rows:
    """A frame as the engine wants it: candidates by query, and a source of passages."""

    def __init__(self, frame: pd.DataFrame, text_field: str) -> None:
        self._texts = frame[text_field].tolist()
        self.queries: dict[str, Query] = {}
        self.rows_by_query: dict[str, dict[str, int]] = {}
        """`query_id -> doc_id -> row`."""
        rows = zip(map(str, frame["qid"]), frame["query"], map(str, frame["docno"]), strict=True)
        for row, (query_id, text, doc_id) in enumerate(rows):
            self.queries.setdefault(query_id, Query(query_id, text))
            positions = self.rows_by_query.setdefault(query_id, {})
            if doc_id in positions:
                raise InputError(f"query {query_id} has document {doc_id} twice", "drop one: what is its rank?")
            positions[doc_id] = row

    def run(self) -> Iterator[tuple[str, list[Candidate]]]:
        for query_id, positions in self.rows_by_query.items():
            yield query_id, [Candidate(doc_id, 1 / (rank + 1)) for rank, doc_id in enumerate(positions)]

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        text = self._texts[self.rows_by_query[query_id or ""][doc_id]]
        if not isinstance(text, str):
            raise InputError(f"document {doc_id} of query {query_id} has no text", "add it with pt.text.get_text")
        return Passage(doc_id, text)


def _in_first_stage_order(frame: pd.DataFrame) -> pd.DataFrame:
    for column, ascending in (("rank", True), ("score", False)):
        if column in frame.columns:
            return frame.sort_values(column, ascending=ascending, kind="stable")
    return frame
