"""Rank-K with the interface of the `CrossEncoder` of sentence-transformers. No extra is required."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, rank_texts, rerank, resolve_reranker
from rank_k.types import Passage


class RankKCrossEncoder:
    """A reranker with the methods `rank` and `predict` of a `CrossEncoder`.

    Args:
        reranker: A reranker, or the model for a new one.
        options: The options of a new `Reranker`.
    """

    def __init__(self, reranker: RerankerSource = None, **options: Any) -> None:
        self.reranker = resolve_reranker(reranker, options)

    def rank(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, Any]],
        top_k: int | None = None,
        return_documents: bool = False,
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[dict[str, Any]]:
        """Return the best documents, the best first.

        Args:
            query: The text of the query.
            documents: Texts, or mappings with a "text".
            top_k: The number of documents to return (None: all).
            return_documents: Whether results contain the documents.
            batch_size: Has no effect.
            show_progress_bar: Has no effect.

        Returns:
            For each document its `corpus_id` (the position in `documents`), its `score` (1 / rank) and, with
            `return_documents`, the unchanged document as `text`.

        Raises:
            InputError: If `top_k` is below 1.
            ModelError: If no window could be ranked because the model did not respond.
        """
        hits = rank_texts(self.reranker, query, documents, top_k)
        rows: list[dict[str, Any]] = [{"corpus_id": hit.index, "score": hit.score} for hit in hits]
        return [row | {"text": documents[row["corpus_id"]]} for row in rows] if return_documents else rows

    def predict(
        self,
        sentences: Sequence[Sequence[str]],
        *,
        batch_size: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[float]:
        """Return the score 1 / rank of each pair of a query and a document.

        A document is ranked among the documents of the same query in this call. Therefore pass all candidates of a
        query in one call, and do not compare the scores of different queries.

        Args:
            sentences: Pairs (query, document).
            batch_size: Has no effect.
            show_progress_bar: Has no effect.

        Raises:
            InputError: If an item of `sentences` is not a pair.
            ModelError: If no window could be ranked because the model did not respond.
        """
        candidates: defaultdict[str, list[str]] = defaultdict(list)
        for position, pair in enumerate(sentences):
            if isinstance(pair, str) or len(pair) != 2:
                raise InputError(f"sentences[{position}] is not a pair", "pass a list of pairs (query, document)")
            candidates[pair[0]].append(str(position))
        passages = {str(position): Passage(str(position), text) for position, (_, text) in enumerate(sentences)}
        scores = [0.0] * len(sentences)
        for _, doc_ids in rerank(self.reranker, candidates, {query: query for query in candidates}, passages):
            for rank, doc_id in enumerate(doc_ids, 1):
                scores[int(doc_id)] = 1 / rank
        return scores
