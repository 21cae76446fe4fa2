"""LangChain: a compression retriever, and the compressor by itself."""

from __future__ import annotations

import asyncio
import os
import sys

from langchain_classic.retrievers import ContextualCompressionRetriever
from langchain_core.documents import Document
from langchain_core.runnables import RunnableLambda

from rank_k import Reranker
from rank_k.integrations.langchain import RankKCompressor
from tests.integrations.frameworks.common import BEST, MODEL, QUERY, TEXTS, run_without_blocking

DOCUMENTS = [Document(text, metadata={"source": doc_id}, id=f"id-{doc_id}") for doc_id, text in TEXTS.items()]


def check(documents: list[Document], expected: list[str]) -> None:
    assert [document.metadata["source"] for document in documents] == expected
    assert [document.metadata["relevance_score"] for document in documents] == [
        1 / rank for rank in range(1, len(expected) + 1)
    ]
    assert [document.id for document in documents] == [f"id-{doc_id}" for doc_id in expected]
    assert [document.page_content for document in documents] == [TEXTS[doc_id] for doc_id in expected]


def check_with_server(url: str) -> None:
    compressor = RankKCompressor(MODEL, server=url, top_n=10)
    first_stage = RunnableLambda(lambda query: DOCUMENTS)
    retriever = ContextualCompressionRetriever(base_retriever=first_stage, base_compressor=compressor)
    check(retriever.invoke(QUERY.text), BEST)
    check(asyncio.run(retriever.ainvoke(QUERY.text)), BEST)
    compressor.reranker.close()

    with Reranker(MODEL, server=url) as reranker:
        compressor = RankKCompressor(reranker)
        assert compressor.reranker is reranker
        everything = asyncio.run(run_without_blocking(lambda: compressor.acompress_documents(DOCUMENTS, QUERY.text)))
        check(list(everything[:10]), BEST)
        assert {document.metadata["source"] for document in everything} == set(TEXTS)
        assert compressor.compress_documents([], QUERY.text) == []
    assert not any("relevance_score" in document.metadata for document in DOCUMENTS)


def check_embedded_model() -> None:
    compressor = RankKCompressor(top_n=1)
    texts = ["Cats purr when they are content.", "The sky is blue since air scatters blue light most."]
    [best] = compressor.compress_documents([Document(text) for text in texts], "why is the sky blue")
    assert best.page_content == texts[1]
    assert compressor.reranker.model.name == "rank-k-nano"


if __name__ == "__main__":
    check_with_server(sys.argv[1])
    if "RANK_K_CACHE" in os.environ:
        check_embedded_model()
