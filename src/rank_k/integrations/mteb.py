"""Rank-K as a search model of MTEB 2, for reranking tasks. Requires `pip install 'rank-k[mteb]'`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from itertools import chain
from random import Random
from typing import Any, TypeAlias

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, rerank, resolve_reranker
from rank_k.optional_deps import load
from rank_k.types import Passage

load("mteb")
from mteb.models import ModelMeta

TopRanked: TypeAlias = Mapping[str, Sequence[str]]
"""The document ids of the candidates by query id."""


class RankKSearch:
    """A model with MTEB's `SearchProtocol`, for tasks with candidates: Reranking tasks, and Retrieval tasks after
    `task.convert_to_reranking(folder, top_k=...)`.

    It does not use MTEB's cross-encoder interface, which passes separate query-passage pairs and does not show which
    passages are candidates for the same query.

    The data sets of Reranking tasks often list relevant candidates first. Therefore the candidates of these tasks are
    shuffled, with the query id as the seed. The candidates of Retrieval tasks keep their first-stage order.

    Args:
        reranker: A reranker, or the model for a new one.
        options: The options of a new `Reranker`.
    """

    def __init__(self, reranker: RerankerSource = None, **options: Any) -> None:
        self.reranker = resolve_reranker(reranker, options)
        self._corpus: Any = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The name and settings of the model. MTEB reuses cached results if the metadata is the same."""
        self.reranker.prepare()
        name, ranker = self.reranker.model.name, self.reranker.ranker
        hashed_settings = (getattr(ranker, "settings", None), getattr(ranker, "template", None), self.reranker.strategy)
        digest = sha256(repr(hashed_settings).encode()).hexdigest()[:8]
        settings = {**self.reranker.options.settings(), "settings": digest}  # the digest covers all settings
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
        """Store the corpus, from which `search` reads passages."""
        self._corpus = corpus

    def search(
        self, queries: Any, *, task_metadata: Any, top_k: int, top_ranked: TopRanked | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return the scores (1 / rank) of the `top_k` best documents, by query id and document id.

        Args:
            queries: The queries of the task.
            task_metadata: The metadata of the task.
            top_k: The number of documents per query.
            top_ranked: The candidates of each query.

        Raises:
            InputError: If there are no candidates.
            ModelError: If no window could be ranked because the model did not respond.
        """
        if top_ranked is None:
            raise InputError("this task has no candidates", "call task.convert_to_reranking(folder, top_k=...) first")
        candidates = {str(row["id"]): list(top_ranked.get(str(row["id"]), ())) for row in queries}
        if "Reranking" in task_metadata.type:
            for query_id, doc_ids in candidates.items():
                Random(query_id).shuffle(doc_ids)
        texts = {str(row["id"]): _query_text(row) for row in queries}
        passages = _Corpus(self._corpus, set(chain.from_iterable(candidates.values())))
        return {
            query_id: {doc_id: 1 / rank for rank, doc_id in enumerate(doc_ids[:top_k], 1)}
            for query_id, doc_ids in rerank(self.reranker, candidates, texts, passages)
        }


class _Corpus:
    """Reads passages from the data set of MTEB on disk when they are needed."""

    def __init__(self, corpus: Any, doc_ids: set[str]) -> None:
        self._corpus = corpus
        self._rows = {doc_id: row for row, doc_id in enumerate(corpus["id"]) if doc_id in doc_ids}

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        if doc_id not in self._rows:
            raise InputError(f"document {doc_id} of query {query_id} is not in the corpus", "check the candidates")
        row = self._corpus[self._rows[doc_id]]
        return Passage(doc_id, " ".join(filter(None, (row.get("title"), row["text"]))))


def _query_text(row: Mapping[str, Any]) -> str:
    """Return the text of a query with its instruction. The turns of a conversation are joined in the same way as in
    MTEB."""
    turns = [row["text"]] if isinstance(row["text"], str) else row["text"]
    text = "; ".join(turn if isinstance(turn, str) else f"{turn['role']}: {turn['content']}" for turn in turns)
    return " ".join(filter(None, (text, row.get("instruction"))))
