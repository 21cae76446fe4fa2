"""Rank-K as a search model of MTEB 2, for its reranking tasks. Needs `pip install 'rank-k[mteb]'`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from random import Random
from typing import TYPE_CHECKING, Any, TypeAlias

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, rerank, resolve_reranker
from rank_k.optional_deps import load
from rank_k.types import Candidate, Passage, Query

if TYPE_CHECKING:
    from mteb.models import ModelMeta
else:
    ModelMeta = load("mteb.models").ModelMeta

TopRanked: TypeAlias = Mapping[str, Sequence[str]]
"""`query_id -> doc_ids` of its candidates."""


class RankKSearch:
    """MTEB's `SearchProtocol` for tasks that come with candidates: Reranking tasks, and Retrieval tasks after
    `task.convert_to_reranking(folder, top_k=...)`.

    Candidates of a Reranking task come in the order of the data set, in many of which the relevant ones stand first,
    so they are shuffled (by the query's id); those of a Retrieval task are in the first stage's order and stay so.
    `reranker`: a ready one, or the model for one; `options` are then `Reranker`'s.
    """

    def __init__(self, reranker: RerankerSource = None, **options: Any) -> None:
        self.reranker = resolve_reranker(reranker, options)
        self._corpus: Any = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Names model and settings: MTEB takes results of the same name from its cache."""
        self.reranker.prepare()
        name, ranker = self.reranker.model.name, self.reranker.ranker
        hashed_settings = (getattr(ranker, "settings", None), getattr(ranker, "template", None), self.reranker.strategy)
        settings = self.reranker.options.settings()
        settings["settings"] = sha256(repr(hashed_settings).encode()).hexdigest()[
            :8
        ]  # all of them; the others are to be read
        revision = self.reranker.model.identity.rpartition("@")[2]
        overwrites = {
            "name": name if "/" in name else f"rank-k/{name or 'model'}",
            "revision": revision or "no_revision_available",
            "experiment_kwargs": {
                key: value for key, value in settings.items() if isinstance(value, str | int | float)
            },
        }
        return ModelMeta.create_empty(overwrites=overwrites)

    def index(self, corpus: Any, **_: Any) -> None:
        self._corpus = corpus

    def search(
        self, queries: Any, *, task_metadata: Any, top_k: int, top_ranked: TopRanked | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """`query_id -> doc_id -> 1 / rank` of the `top_k` best."""
        if top_ranked is None:
            raise InputError("this task has no candidates to rerank", "task.convert_to_reranking(folder, top_k=...)")
        queries_by_id = {str(row["id"]): Query(str(row["id"]), _query_text(row)) for row in queries}
        shuffle = "Reranking" in task_metadata.type
        run = ((query_id, _candidates(query_id, top_ranked.get(query_id, ()), shuffle)) for query_id in queries_by_id)
        passages = _Corpus(
            self._corpus, {doc_id for query_id in queries_by_id for doc_id in top_ranked.get(query_id, ())}
        )
        return {
            result.query_id: {doc_id: 1 / rank for rank, doc_id in enumerate(result.ranking.doc_ids[:top_k], 1)}
            for result in rerank(self.reranker, run, queries_by_id, passages)
        }


class _Corpus:
    """Passages read from MTEB's data set, which lies on disk, when their query's turn has come."""

    def __init__(self, corpus: Any, doc_ids: set[str]) -> None:
        self._corpus = corpus
        self._rows = {doc_id: row for row, doc_id in enumerate(corpus["id"]) if doc_id in doc_ids}

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        if doc_id not in self._rows:
            raise InputError(f"document {doc_id} of query {query_id} is not in the corpus", "mend the candidates")
        row = self._corpus[self._rows[doc_id]]
        return Passage(doc_id, " ".join(filter(None, (row.get("title"), row["text"]))))


def _candidates(query_id: str, doc_ids: Sequence[str], shuffle: bool) -> list[Candidate]:
    ids = list(doc_ids)
    if shuffle:
        Random(query_id).shuffle(ids)
    return [Candidate(doc_id, 1 / rank) for rank, doc_id in enumerate(ids, 1)]


def _query_text(row: Mapping[str, Any]) -> str:
    """A query with its instruction, where it has one; a conversation's turns one after the other. As MTEB does it."""
    turns = [row["text"]] if isinstance(row["text"], str) else row["text"]
    text = "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in turns)
    return " ".join(filter(None, (text, row.get("instruction"))))
