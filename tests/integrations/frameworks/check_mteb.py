"""MTEB: a tiny Retrieval task with the reranker as second stage, and a Reranking task that would give itself away.

    python -m tests.integrations.frameworks.check_mteb URL DOCUMENTATION

`DOCUMENTATION` is the page's example, which is used here.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mteb
from datasets import Dataset
from mteb.abstasks import AbsTaskRetrieval
from mteb.abstasks.task_metadata import TaskMetadata
from mteb.models import ModelMeta, SearchProtocol

from rank_k import Reranker, ScriptedModel
from rank_k.errors import InputError
from rank_k.integrations.mteb import RankKSearch
from rank_k.types import Request
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.request_log import peak_concurrency
from tests.fakes.model_server.running import FakeModelServer
from tests.integrations.frameworks.common import MODEL, assert_raises

DATA = make_dataset(6, 20)


def metadata(name: str, kind: str) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        dataset={"path": "in/memory", "revision": "1"},
        description="Passages with marks.",
        reference="https://example.org",
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        date=("2020-01-01", "2020-12-31"),
        domains=["Written"],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
    )


class Marked(AbsTaskRetrieval):
    metadata = metadata("Marked", "Retrieval")
    top_ranked: Any = None

    def load_data(self, *_: Any, **__: Any) -> None:
        corpus = [{"id": p.doc_id, "title": "", "text": p.text} for p in DATA.passages.values()]
        split = {
            "corpus": Dataset.from_list(corpus),
            "queries": Dataset.from_list([{"id": query.query_id, "text": query.text} for query in DATA.queries]),
            "relevant_docs": {query_id: dict(grades) for query_id, grades in DATA.qrels.items()},
            "top_ranked": self.top_ranked,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class BestFirst(Marked):
    """Brings its candidates as many data sets do: the relevant ones first."""

    metadata = metadata("BestFirst", "Reranking")
    top_ranked = {query.query_id: DATA.perfect(query.query_id) for query in DATA.queries}  # noqa: RUF012


class FirstStage:
    """Finds what the data's own first stage found."""

    mteb_model_meta = ModelMeta.create_empty(overwrites={"name": "tests/first-stage", "revision": "1"})

    def index(self, corpus: Any, **_: Any) -> None:
        pass

    def search(self, queries: Any, **_: Any) -> dict[str, dict[str, float]]:
        return {query_id: {c.doc_id: c.score for c in DATA.run[query_id]} for query_id in queries["id"]}


def score(result: Any) -> float:
    return float(result.task_results[0].get_score())


def check_second_stage(url: str, documentation: Path) -> None:
    names: dict[str, Any] = {}
    exec(compile(documentation.read_text(encoding="utf-8"), str(documentation), "exec"), names)
    mteb.get_task = lambda name: Marked()
    loopback = FakeModelServer(url)
    loopback.forget()
    before, after = names["evaluate_reranker"](FirstStage(), "Marked")
    assert score(before) < 0.9, score(before)
    assert score(after) == 1.0, score(after)
    spans = [(call.start, call.end) for call in loopback.calls if call.end is not None]
    assert len(spans) == len(DATA.queries)
    assert peak_concurrency(spans) > 3, "queries were ranked one after the other"
    assert after.model_name == MODEL

    loopback.forget()
    assert score(names["evaluate_reranker"](FirstStage(), "Marked")[1]) == 1.0
    assert not loopback.calls, "known to MTEB"
    task = Marked().convert_to_reranking("predictions", top_k=100)
    with Reranker(MODEL, server=url, strategy="single", depth=1) as reranker:
        assert score(mteb.evaluate(RankKSearch(reranker), task)) == score(before), "another setting, not from the cache"


def check_candidates_are_shuffled() -> None:
    """A model that has nothing to say must not find the relevant passages."""
    doc_id_lists = []

    def respond(request: Request) -> str:
        doc_id_lists.append(request.context.doc_ids)
        return "I would rather not."

    with Reranker(ScriptedModel(respond)) as reranker:
        search = RankKSearch(reranker)
        assert isinstance(search, SearchProtocol)
        result = mteb.evaluate(search, BestFirst(), cache=None)
        assert 0.1 < score(result) < 0.9, score(result)
        assert {frozenset(doc_ids) for doc_ids in doc_id_lists} == {frozenset(r) for r in BestFirst.top_ranked.values()}
        with assert_raises(InputError, "convert_to_reranking"):
            mteb.evaluate(search, Marked(), cache=None)


def check_query_formats() -> None:
    prompts = []

    def respond(request: Request) -> str:
        prompts.append(request.messages[-1].content)
        return "[2] > [1]"

    rows: list[dict[str, Any]] = [
        {"id": "plain", "text": "one two"},
        {"id": "instructed", "text": "three", "instruction": "be four"},
        {"id": "turns", "text": [{"role": "user", "content": "five"}, {"role": "assistant", "content": "six"}]},
    ]
    corpus = Dataset.from_list(
        [{"id": "a", "title": "Title", "text": "first"}, {"id": "b", "title": None, "text": "2nd"}]
    )
    ranked = {row["id"]: ["a", "b"] for row in rows}
    with Reranker(ScriptedModel(respond), concurrency=1) as reranker:
        search = RankKSearch(reranker)
        search.index(corpus)
        scores = search.search(rows, task_metadata=Marked.metadata, top_k=1, top_ranked=ranked)
    assert scores == {row["id"]: {"b": 1.0} for row in rows}
    assert all("] Title first" in question and "] 2nd" in question for question in prompts)
    for question, text in zip(prompts, ("one two", "three be four", "user: five; assistant: six"), strict=True):
        assert text in question


if __name__ == "__main__":
    check_second_stage(sys.argv[1], Path(sys.argv[2]))
    check_candidates_are_shuffled()
    check_query_formats()
