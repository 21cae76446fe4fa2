"""Rank-K with the interface of sentence-transformers' `CrossEncoder`. Needs no extra."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, rank_texts, rerank, resolve_reranker
from rank_k.types import Passage


class RankKCrossEncoder:
    """Provides `rank` and `predict`. Their arguments `batch_size` and `show_progress_bar` have no effect.

    Args:
        reranker: A reranker, or the model for one.
        options: The options of a new `Reranker`.
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
        """Return the `top_k` best documents (None: all), best first.

        Each has a `corpus_id` (its position in `documents`), a `score` (1 / rank) and, with `return_documents`, its
        `text`.
        """
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
        """Return 1 / rank for each pair (query, document), among the pairs of the same query *in this call*.

        So give all candidates of a query at once, and compare scores within a query only.
        """
        candidates: defaultdict[str, list[str]] = defaultdict(list)
        for position, pair in enumerate(sentences):
            if isinstance(pair, str) or len(pair) != 2:
                raise InputError("a pair is not (query, document)", "give a list of pairs")
            candidates[pair[0]].append(str(position))
        passages = {str(position): Passage(str(position), text) for position, (_, text) in enumerate(sentences)}
        scores = [0.0] * len(sentences)
        for _, doc_ids in rerank(self.reranker, candidates, {query: query for query in candidates}, passages):
            for rank, doc_id in enumerate(doc_ids, 1):
                scores[int(doc_id)] = 1 / rank
        return scores
