"""Rank-K in the shape of sentence-transformers' `CrossEncoder`, for code that calls one. Needs no extra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, rank_texts, rerank, resolve_reranker
from rank_k.types import Candidate, Passage, Query


class RankKCrossEncoder:
    """`rank` and `predict`. `reranker`: a ready one, or the model for one; `options` are then `Reranker`'s.

    `batch_size` and `show_progress_bar` are taken, since callers give them, and have no meaning here.
    """

    def __init__(self, reranker: RerankerSource = None, **options: Any) -> None:
        self.reranker = resolve_reranker(reranker, options)

    def rank(
        self,
        query: str,
        documents: Sequence[str],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """The `top_k` best (None: all), best first: `corpus_id`, the place in `documents`; `score`, 1 / rank; with
        `return_documents` the `text` too."""
        hits = rank_texts(self.reranker, query, documents, top_k)
        texts = [{"text": hit.text} if return_documents else {} for hit in hits]
        return [{"corpus_id": hit.index, "score": hit.score, **text} for hit, text in zip(hits, texts, strict=True)]

    def predict(
        self,
        sentences: Sequence[Sequence[str]],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float]:
        """For each pair (query, document) 1 / the document's rank among those that have the same query *in this call*.

        So give all candidates of a query at once, and compare scores within a query only.
        """
        documents: dict[str, list[Candidate]] = {}
        for position, pair in enumerate(sentences):
            if isinstance(pair, str) or len(pair) != 2:
                raise InputError("a pair is not (query, document)", "give a list of pairs")
            documents.setdefault(pair[0], []).append(Candidate(str(position), 0.0))
        texts = {str(position): Passage(str(position), pair[1]) for position, pair in enumerate(sentences)}
        queries = {query: Query(query, query) for query in documents}
        scores = [0.0] * len(sentences)
        for result in rerank(self.reranker, documents.items(), queries, texts):
            for rank, doc_id in enumerate(result.ranking.doc_ids, 1):
                scores[int(doc_id)] = 1 / rank
        return scores
