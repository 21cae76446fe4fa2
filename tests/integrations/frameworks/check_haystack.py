"""Haystack: a pipeline, saved and loaded again, with a key that is never saved. `MODEL_API_KEY` is the server's."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

from haystack import Document, Pipeline
from haystack.components.joiners import DocumentJoiner
from haystack.core.errors import DeserializationError
from haystack.utils import Secret

from rank_k import Reranker
from rank_k.errors import InputError
from rank_k.integrations.haystack import RankKRanker
from tests.integrations.frameworks.common import (
    BEST,
    MODEL,
    NEW_QUERY,
    QUERY,
    TEXTS,
    assert_raises,
    run_without_blocking,
)

DOCUMENTS = [Document(id=doc_id, content=text, meta={"source": doc_id}) for doc_id, text in TEXTS.items()]
ALLOWED = ["rank_k.integrations.haystack"]


def pipeline_with(ranker: Any) -> Pipeline:
    """First-stage candidates in, ranked ones out."""
    pipeline = Pipeline()
    pipeline.add_component("first_stage", DocumentJoiner(join_mode="concatenate", sort_by_score=False))
    pipeline.add_component("ranker", ranker)
    pipeline.connect("first_stage.documents", "ranker.documents")
    return pipeline


def check(output: dict[str, Any]) -> None:
    documents = output["ranker"]["documents"]
    assert [document.id for document in documents] == BEST
    assert [document.score for document in documents] == [1 / rank for rank in range(1, len(BEST) + 1)]
    assert all(document.meta == {"source": document.id} for document in documents)


def check_with_server(url: str) -> None:
    key = Secret.from_env_var("MODEL_API_KEY")
    pipeline = pipeline_with(RankKRanker(MODEL, server=url, api_key=key, top_k=10, reasoning=2000))
    data = {"first_stage": {"documents": DOCUMENTS}, "ranker": {"query": QUERY.text}}
    check(pipeline.run(data))
    check(asyncio.run(pipeline.run_async(data)))
    pipeline.close()
    check(pipeline.run(data))

    saved = pipeline.dumps()
    pipeline.close()
    assert os.environ["MODEL_API_KEY"] not in saved
    loaded = Pipeline.loads(saved, allowed_modules=ALLOWED)
    assert loaded.dumps() == saved
    ranker = loaded.get_component("ranker")
    assert ranker.reranker.options.reasoning == "2000"
    check(loaded.run(data))
    run = asyncio.run(run_without_blocking(lambda: ranker.run_async(query=NEW_QUERY, documents=DOCUMENTS, top_k=3)))
    assert [document.id for document in run["documents"]] == BEST[:3]
    assert ranker.run(query=QUERY.text, documents=[]) == {"documents": []}
    loaded.close()
    with assert_raises(DeserializationError, "rank_k"):  # the page says that the module must be allowed
        Pipeline.loads(saved)


def what_cannot_be_saved(url: str) -> None:
    with Reranker(MODEL, server=url, api_key=os.environ["MODEL_API_KEY"]) as reranker:
        component = RankKRanker(reranker)
        component.warm_up()
        component.close()
        assert len(component.run(query=QUERY.text, documents=DOCUMENTS)["documents"]) == len(DOCUMENTS)
        with assert_raises(InputError, "cannot be saved"):
            pipeline_with(component).dumps()
    with assert_raises(ValueError, "token"):
        RankKRanker(MODEL, server=url, api_key=Secret.from_token("a token")).to_dict()


if __name__ == "__main__":
    check_with_server(sys.argv[1])
    what_cannot_be_saved(sys.argv[1])
