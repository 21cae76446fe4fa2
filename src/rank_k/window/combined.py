"""Rank some windows by query likelihood and the others by comparison (see `rank_k.strategies.combined`)."""

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
class _CombinedPreparedQuery(PreparedQuery):
    """The texts for the listwise ranker; `likelihood_query` holds those for query likelihood, truncated elsewhere."""

    likelihood_query: PreparedQuery


class CombinedRanker:
    """Rank each window by its `method`. An `Engine` uses it like a `ListwiseRanker`."""

    def __init__(self, likelihood: QueryLikelihoodRanker, listwise: ListwiseRanker) -> None:
        self.likelihood = likelihood
        self.listwise = listwise

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
        likelihood_query = await self.likelihood.prepare_query(query, passages)
        listwise_query = await self.listwise.prepare_query(query, passages)
        repairs = Counter(likelihood_query.repairs) | Counter(
            listwise_query.repairs
        )  # a passage cut for both is cut once
        return _CombinedPreparedQuery(query, listwise_query.text, listwise_query.passages, repairs, likelihood_query)

    async def rank(
        self,
        prepared_query: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_chunk: OnChunk | None = None,
    ) -> WindowReport:
        """What either makes of the window. Raises `ModelError` when the model cannot be had."""
        if window.method == "likelihood" and isinstance(prepared_query, _CombinedPreparedQuery):
            return await self.likelihood.rank(
                prepared_query.likelihood_query, window, reasoning=reasoning, on_chunk=on_chunk
            )
        return await self.listwise.rank(prepared_query, window, reasoning=reasoning, on_chunk=on_chunk)
