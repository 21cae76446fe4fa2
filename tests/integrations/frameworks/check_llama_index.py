"""LlamaIndex: nodes without a retriever, and what its observers are told."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.schema import NodeWithScore, TextNode

from rank_k import Reranker, ScriptedModel
from rank_k.errors import InputError
from rank_k.integrations.llama_index import RankKPostprocessor
from rank_k.types import Request
from tests.integrations.frameworks.common import (
    BEST,
    MODEL,
    NEW_QUERY,
    QUERY,
    TEXTS,
    assert_raises,
    run_without_blocking,
)

NODES = [NodeWithScore(node=TextNode(text=text, id_=doc_id), score=0.5) for doc_id, text in TEXTS.items()]


class EventRecorder(BaseEventHandler):
    names: list[str] = []  # noqa: RUF012, a field of pydantic's

    def handle(self, event: Any, **_: Any) -> None:
        self.names.append(event.class_name())


def check(nodes: list[NodeWithScore]) -> None:
    assert [node.node.node_id for node in nodes] == BEST
    assert [node.score for node in nodes] == [1 / rank for rank in range(1, len(BEST) + 1)]


def check_with_server(url: str) -> None:
    recorder = EventRecorder()
    get_dispatcher().add_event_handler(recorder)
    postprocessor = RankKPostprocessor(MODEL, server=url, top_n=10)
    check(postprocessor.postprocess_nodes(NODES, query_str=QUERY.text))
    assert recorder.names == ["ReRankStartEvent", "ReRankEndEvent"]
    check(asyncio.run(run_without_blocking(lambda: postprocessor.apostprocess_nodes(NODES, query_str=NEW_QUERY))))
    assert [node.score for node in NODES] == [0.5] * len(NODES), "the nodes given stay as they are"
    assert postprocessor.postprocess_nodes([], query_str=QUERY.text) == []
    with assert_raises(InputError, "query is missing"):
        postprocessor.postprocess_nodes(NODES)


def check_metadata_is_sent() -> None:
    """What an embedding model is meant to see, the language model sees."""
    prompts = []

    def respond(request: Request) -> str:
        prompts.append(request.messages[-1].content)
        return "[2] > [1]"

    hidden = TextNode(text="one", metadata={"kind": "recipe", "path": "/secret"})
    hidden.excluded_embed_metadata_keys = ["path"]
    nodes = [NodeWithScore(node=hidden), NodeWithScore(node=TextNode(text="two"))]
    with Reranker(ScriptedModel(respond)) as reranker:
        ranked = RankKPostprocessor(reranker).postprocess_nodes(nodes, query_str="q")
    assert [node.text for node in ranked] == ["two", "one"]
    assert "kind: recipe" in prompts[0]
    assert "/secret" not in prompts[0]


if __name__ == "__main__":
    check_with_server(sys.argv[1])
    check_metadata_is_sent()
