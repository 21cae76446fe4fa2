"""Rank-K as a document compressor of LangChain. Requires `pip install 'rank-k[langchain]'`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from rank_k.integrations.common import RerankerSource, arank_texts, rank_texts, resolve_reranker
from rank_k.optional_deps import load
from rank_k.reranker import Reranker
from rank_k.types import Hit

load("langchain_core")
from langchain_core.documents import BaseDocumentCompressor, Document


class RankKCompressor(BaseDocumentCompressor):
    """Ranks documents, for example in a `ContextualCompressionRetriever`.

    It returns copies of the best documents, the best first, whose `metadata["relevance_score"]` is 1 / rank.

    Args:
        reranker: A reranker, or the model for a new one.
        top_n: The number of documents to return (None: all).
        options: The options of a new `Reranker`.
    """

    model_config: ClassVar[Any] = {"arbitrary_types_allowed": True}

    reranker: Reranker
    top_n: int | None = None

    def __init__(self, reranker: RerankerSource = None, *, top_n: int | None = None, **options: Any) -> None:
        super().__init__(reranker=resolve_reranker(reranker, options), top_n=top_n)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: object = None
    ) -> Sequence[Document]:
        """Return the best of `documents` for `query`. `callbacks` has no effect."""
        return _with_scores(documents, rank_texts(self.reranker, query, _texts(documents), self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: object = None
    ) -> Sequence[Document]:
        """`compress_documents` for async code."""
        return _with_scores(documents, await arank_texts(self.reranker, query, _texts(documents), self.top_n))


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def _with_scores(documents: Sequence[Document], hits: Sequence[Hit]) -> list[Document]:
    return [
        documents[hit.index].model_copy(
            update={"metadata": {**documents[hit.index].metadata, "relevance_score": hit.score}}
        )
        for hit in hits
    ]
