"""Asking about some windows by likelihood and about the others by comparison (see `strategies.cascade`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rank_k.types import OnChunk, Passage, Query, Window
from rank_k.window.listwise import ListwiseRanker, WindowReport
from rank_k.window.prompt_builder import PreparedQuery
from rank_k.window.query_likelihood import QueryLikelihoodRanker
from rank_k.window.reasoning import ReasoningMode


@dataclass(frozen=True, slots=True)
class _PreparedQueries(PreparedQuery):
    """The texts to be compared, and `alone` those to be looked at by themselves: they may be cut elsewhere."""

    single: PreparedQuery


class CombinedRanker:
    """Asks about each window as its `by` says. In an `Engine`, an `ListwiseRanker`'s equal."""

    def __init__(self, likelihood: QueryLikelihoodRanker, comparison: ListwiseRanker) -> None:
        self.likelihood = likelihood
        self.listwise = comparison

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Raise `InputError` if the model cannot tell how likely a text is."""
        await self.likelihood.prepare(reasoning)
        await self.listwise.prepare(reasoning)

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for either."""
        await self.likelihood.check_query(query)
        await self.listwise.check_query(query)

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""
        alone = await self.likelihood.prepare_query(query, passages)
        compared = await self.listwise.prepare_query(query, passages)
        repairs = Counter(alone.repairs) | Counter(compared.repairs)  # a passage cut for both is cut once
        return _PreparedQueries(query, compared.text, compared.passages, repairs, alone)

    async def rank(
        self,
        texts: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_text: OnChunk | None = None,
    ) -> WindowReport:
        """What either makes of the window. Raises `ModelError` when the model cannot be had."""
        if window.method == "likelihood" and isinstance(texts, _PreparedQueries):
            return await self.likelihood.rank(texts.single, window, reasoning=reasoning, on_text=on_text)
        return await self.listwise.rank(texts, window, reasoning=reasoning, on_text=on_text)
