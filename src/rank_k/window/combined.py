"""Rank some windows by scores and the others by comparison (see `rank_k.strategies.combined`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from rank_k.option_values import ReasoningMode
from rank_k.types import OnChunk, Passage, Query, Window
from rank_k.window.base import WindowReport
from rank_k.window.listwise import ListwiseRanker
from rank_k.window.prompt_builder import PreparedQuery
from rank_k.window.scorers import Scorer, ScoreRanker


@dataclass(frozen=True, slots=True)
class _CombinedPreparedQuery(PreparedQuery):
    """The query prepared for the scorer; `listwise_query` is prepared for comparison, with longer passages."""

    listwise_query: PreparedQuery


class CombinedRanker(ScoreRanker):
    """Rank each window by its `method`: by the scores of `scorer`, or by `listwise`."""

    def __init__(self, scorer: Scorer, listwise: ListwiseRanker) -> None:
        super().__init__(scorer)
        self.listwise = listwise

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Raise `InputError` if the scorer cannot score."""
        await super().prepare(reasoning)
        await self.listwise.prepare(reasoning)

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no space for passages in either prompt."""
        await super().check_query(query)
        await self.listwise.check_query(query)

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Return the query and its passages, prepared for both prompts. Raises `QueryTooLong` like `check_query`."""
        score_query = await super().prepare_query(query, passages)
        listwise_query = await self.listwise.prepare_query(query, passages)
        # A passage that is truncated for both is counted once.
        repairs = Counter(score_query.repairs) | Counter(listwise_query.repairs)
        return _CombinedPreparedQuery(
            query, score_query.text, score_query.passages, repairs, score_query.lengths, listwise_query
        )

    async def rank(
        self,
        prepared_query: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_chunk: OnChunk | None = None,
    ) -> WindowReport:
        """Rank one window. Raises `ModelError` if the model does not respond."""
        if window.method == "likelihood" or not isinstance(prepared_query, _CombinedPreparedQuery):
            return await super().rank(prepared_query, window)
        return await self.listwise.rank(prepared_query.listwise_query, window, reasoning=reasoning, on_chunk=on_chunk)
