"""Rank-K as a node postprocessor of LlamaIndex. Requires `pip install 'rank-k[llama-index]'`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, arank_texts, rank_texts, resolve_reranker
from rank_k.optional_deps import load
from rank_k.reranker import Reranker
from rank_k.types import Hit

load("llama_index.core")
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle


class RankKPostprocessor(BaseNodePostprocessor):
    """Ranks nodes. Returns the best ones with the score 1 / rank, the best first.

    The model reads the same text as an embedding model: the text of a node and the metadata that it has for embedding.

    Args:
        reranker: A reranker, or the model for a new one.
        top_n: The number of nodes to return (None: all).
        options: The options of a new `Reranker`.
    """

    reranker: Reranker
    top_n: int | None = None

    def __init__(self, reranker: RerankerSource = None, *, top_n: int | None = None, **options: Any) -> None:
        super().__init__(reranker=resolve_reranker(reranker, options), top_n=top_n)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class, for saved components."""
        return "RankKPostprocessor"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._start_rerank(nodes, query_bundle)
        return _with_scores(nodes, rank_texts(self.reranker, query, _texts(nodes), self.top_n))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._start_rerank(nodes, query_bundle)
        return _with_scores(nodes, await arank_texts(self.reranker, query, _texts(nodes), self.top_n))

    def _start_rerank(self, nodes: list[NodeWithScore], query: QueryBundle | None) -> str:
        """Send the start event of LlamaIndex, and return the text of the query."""
        if query is None:
            raise InputError("the query is missing", "pass query_bundle or query_str")
        top_n, model = self.top_n or len(nodes), self.reranker.model.name
        get_dispatcher(__name__).event(ReRankStartEvent(query=query, nodes=nodes, top_n=top_n, model_name=model))
        return str(query.query_str)


def _texts(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _with_scores(nodes: Sequence[NodeWithScore], hits: Sequence[Hit]) -> list[NodeWithScore]:
    scored = [NodeWithScore(node=nodes[hit.index].node, score=hit.score) for hit in hits]
    get_dispatcher(__name__).event(ReRankEndEvent(nodes=scored))
    return scored
