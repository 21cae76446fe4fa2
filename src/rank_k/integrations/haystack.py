"""Rank-K as a ranker component of Haystack. Requires `pip install 'rank-k[haystack]'`."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rank_k.errors import InputError
from rank_k.integrations.common import RerankerSource, arank_texts, rank_texts, resolve_reranker
from rank_k.optional_deps import load
from rank_k.reranker import Reranker
from rank_k.types import Hit

load("haystack")
from haystack import Document, component, default_to_dict
from haystack.utils import Secret


@component
class RankKRanker:
    """Ranks documents. Returns copies of the best ones with the score 1 / rank, the best first.

    Args:
        reranker: The model for a new reranker, or an existing reranker. The pipeline does not close an existing
            reranker, and cannot be saved if it contains one.
        top_k: The number of documents to return (None: all).
        api_key: The key of the server.
        options: The options of a new `Reranker`.
    """

    def __init__(
        self,
        reranker: RerankerSource = None,
        *,
        top_k: int | None = None,
        api_key: Secret | None = None,
        **options: Any,
    ) -> None:
        self._source, self._api_key, self._options = reranker, api_key, options
        self.top_k = top_k

    @cached_property
    def reranker(self) -> Reranker:
        """The reranker. It is created when it is first used, because the key may be unset when a pipeline is loaded."""
        key = {"api_key": self._api_key.resolve_value()} if self._api_key else {}
        return resolve_reranker(self._source, self._options | key)

    def warm_up(self) -> None:
        """Connect to the server or start the embedded model. Raises `ModelError`."""
        self.reranker.prepare()

    async def warm_up_async(self) -> None:
        """`warm_up` for async pipelines."""
        await asyncio.to_thread(self.warm_up)

    def close(self) -> None:
        """Close the reranker, unless it was passed to the component. The next run creates a new reranker."""
        if not isinstance(self._source, Reranker) and "reranker" in vars(self):
            self.reranker.close()
            del self.reranker

    async def close_async(self) -> None:
        """`close` for async pipelines."""
        await asyncio.to_thread(self.close)

    def to_dict(self) -> dict[str, Any]:
        """Return the component in the format of saved pipelines.

        Raises:
            InputError: If the component was created with an existing reranker or model. Haystack raises its own errors
                if the key is not an `EnvVarSecret` or an option cannot be serialized.
        """
        if not isinstance(self._source, str | Path | None):
            raise InputError(
                "an existing reranker or model cannot be saved",
                "create the component with the name of a model and options for a new reranker",
            )
        parameters = {"reranker": self._source, "top_k": self.top_k, "api_key": self._api_key, **self._options}
        plain = {name: str(value) if isinstance(value, Path) else value for name, value in parameters.items()}
        return dict(default_to_dict(self, **plain))

    @component.output_types(documents=list[Document])
    def run(self, query: str, documents: list[Document], top_k: int | None = None) -> dict[str, list[Document]]:
        """Return the ranked `documents`. `top_k` overrides the `top_k` of the component."""
        hits = rank_texts(self.reranker, query, _texts(documents), self.top_k if top_k is None else top_k)
        return {"documents": _with_scores(documents, hits)}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, documents: list[Document], top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """`run` for async pipelines."""
        hits = await arank_texts(self.reranker, query, _texts(documents), self.top_k if top_k is None else top_k)
        return {"documents": _with_scores(documents, hits)}


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.content or "" for document in documents]


def _with_scores(documents: Sequence[Document], hits: Sequence[Hit]) -> list[Document]:
    return [replace(documents[hit.index], score=hit.score) for hit in hits]
