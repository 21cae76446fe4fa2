"""Rank-K as a document compressor of LangChain. Needs `pip install 'rank-k[langchain]'`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from rank_k.integrations.common import RerankerSource, arank_texts, rank_texts, resolve_reranker
from rank_k.optional_deps import load
from rank_k.reranker import Reranker
from rank_k.types import Hit

if TYPE_CHECKING:
    from langchain_core.documents import BaseDocumentCompressor, Document
else:
    BaseDocumentCompressor = load("langchain_core.documents").BaseDocumentCompressor


class RankKCompressor(BaseDocumentCompressor):
    """For a `ContextualCompressionRetriever`, or wherever documents are compressed: the best ones, best first.

    Documents come back as copies with everything they had and `metadata["relevance_score"]`, which is 1 / rank.
    `reranker`: a ready one, or the model for one; `options` are then `Reranker`'s. `top_n`: how many documents to
    return (None: all).
    """

    model_config: ClassVar[Any] = {"arbitrary_types_allowed": True}

    reranker: Reranker
    top_n: int | None = None

    def __init__(self, reranker: RerankerSource = None, *, top_n: int | None = None, **options: Any) -> None:
        super().__init__(reranker=resolve_reranker(reranker, options), top_n=top_n)

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: object = None
    ) -> Sequence[Document]:
        return _with_scores(documents, rank_texts(self.reranker, query, _texts(documents), self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: object = None
    ) -> Sequence[Document]:
        return _with_scores(documents, await arank_texts(self.reranker, query, _texts(documents), self.top_n))


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def _with_scores(documents: Sequence[Document], hits: Sequence[Hit]) -> list[Document]:
    scored_documents = ((documents[hit.index], hit.score) for hit in hits)
    return [
        document.model_copy(update={"metadata": {**document.metadata, "relevance_score": score}})
        for document, score in scored_documents
    ]
