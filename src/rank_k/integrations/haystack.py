"""Rank-K as a ranker component of Haystack. Needs `pip install 'rank-k[haystack]'`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, arank_texts, rank_texts, resolve_reranker
from rank_k.optional_deps import load
from rank_k.reranker import Reranker
from rank_k.types import Hit

if TYPE_CHECKING:
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret
else:
    _haystack = load("haystack")
    Document, component = _haystack.Document, _haystack.component
    default_from_dict, default_to_dict = _haystack.default_from_dict, _haystack.default_to_dict


@component
class RankKRanker:
    """The best documents, best first, each with the score 1 / rank.

    `reranker`: the model for one, or a ready one, which is then not closed with the pipeline and cannot be saved with
    it; `options` are `Reranker`'s. `top_k`: how many documents to return (None: all). `api_key`: the server's.
    """

    def __init__(
        self,
        reranker: RerankerSource = None,
        *,
        top_k: int | None = None,
        api_key: Secret | None = None,
        **options: Any,
    ) -> None:
        self._source = reranker
        self._options = options
        self._api_key = api_key
        self._created: Reranker | None = None
        self.top_k = top_k

    @property
    def reranker(self) -> Reranker:
        """The ready one, or one that is made when it is first needed: a pipeline may be loaded without its key."""
        if isinstance(self._source, Reranker):
            return resolve_reranker(self._source, self._options)
        if self._created is None:
            key = {"api_key": self._api_key.resolve_value()} if self._api_key else {}
            self._created = resolve_reranker(self._source, self._options | key)
        return self._created

    def warm_up(self) -> None:
        """Connect, or start the embedded model. Raises `ModelError`."""
        self.reranker.prepare()

    async def warm_up_async(self) -> None:
        await asyncio.to_thread(self.warm_up)

    def close(self) -> None:
        """Free what was made here. Running again makes it anew."""
        if self._created is not None:
            self._created.close()
            self._created = None

    async def close_async(self) -> None:
        await asyncio.to_thread(self.close)

    def to_dict(self) -> dict[str, Any]:
        """Raises `InputError` for a ready reranker, and Haystack's own errors for a key that is not an `EnvVarSecret`
        and for options that are more than plain values."""
        if not isinstance(self._source, str | Path | None):
            raise InputError("a ready reranker or model cannot be saved", "make the component with options instead")
        parameters = {"reranker": self._source, "top_k": self.top_k, "api_key": self._api_key, **self._options}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}
        return dict(default_to_dict(self, **plain))

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RankKRanker:
        ranker: RankKRanker = default_from_dict(cls, data)
        return ranker

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        hits = rank_texts(self.reranker, query, _texts(documents), self.top_k if top_k is None else top_k)
        return {"documents": _with_scores(documents, hits)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        hits = await arank_texts(self.reranker, query, _texts(documents), self.top_k if top_k is None else top_k)
        return {"documents": _with_scores(documents, hits)}


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.content or "" for document in documents]


def _with_scores(documents: Sequence[Document], hits: Sequence[Hit]) -> list[Document]:
    return [replace(documents[hit.index], score=hit.score) for hit in hits]
