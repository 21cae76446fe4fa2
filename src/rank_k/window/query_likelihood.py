"""Ranking by query likelihood: how probable does the model find the query after the passage?

No comparison and no reasoning: each passage is looked at by itself, and what is asked for is the probability of a
text, which language models know without having been trained to rank. From Ponte and Croft (1998); with large language
models, Sachan et al. (2022, arXiv 2204.07496). The length of the query is the same for all its passages, so that
nothing is gained by dividing by it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from math import fsum, isfinite

from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.models.base import Model
from rank_k.models.cached import CachedCalls, CallStats
from rank_k.models.retry import RetryPolicy
from rank_k.types import (
    Message,
    OnChunk,
    Passage,
    Query,
    Request,
    RequestContext,
    Response,
    Window,
    WindowRanking,
    WindowResult,
)
from rank_k.window.listwise import WindowReport
from rank_k.window.prompt import PromptTemplate
from rank_k.window.prompt_builder import PreparedQuery, PromptBuilder
from rank_k.window.reasoning import ReasoningMode

PASSAGE_TOKENS = 64
"""Of a passage; chosen among 64, 128 and 256 on held-out collections (docs/embedded.md)."""

LIKELIHOOD_TEMPLATE = PromptTemplate("Document: ", "\nSearch query: {query}", passage="{text}", name="query likelihood")
"""Of one passage. The query is what is spelt, with the blank before it; the text before that is the prompt."""


class QueryLikelihoodRanker:
    """Rank windows by the query's likelihood after each of their passages. An `Engine` uses it like a
    `ListwiseRanker`.

    `passage_tokens`: passages are cut to this. Each passage is one call, kept in `journal`; those of a window are
    made at the same time, as `concurrency` allow. `calls`: those of another ranker, to share its concurrency limit.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        passage_tokens: int = PASSAGE_TOKENS,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        concurrency: int = 1_000_000,
        calls: CachedCalls | None = None,
    ) -> None:
        self.model = model
        self._calls = calls or CachedCalls(model, journal, retries, on_retry, concurrency)
        self._prompt_builder = PromptBuilder(model, LIKELIHOOD_TEMPLATE, passage_tokens, 1)

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Raise `InputError` if the model cannot tell how likely a text is."""
        if not self.model.capabilities.scores_given_text:
            raise InputError(
                f"{self.model.name} cannot be asked how likely a query is",
                "rank by comparison, or with the embedded model or a llama.cpp server",
            )

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""
        return await self._prompt_builder.prepare_query(query, passages)

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room for a passage."""
        await self._prompt_builder.check_query(query)

    async def rank(
        self,
        prepared_query: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_chunk: OnChunk | None = None,
    ) -> WindowReport:
        """The window's passages, likeliest query first. Raises `ModelError` when the model cannot be had.

        The model generates no text: `reasoning` changes nothing, and `on_chunk` is not called. A passage without a
        usable reply comes after those that have one, and is counted as missing.
        """
        stats = CallStats()
        scores: Sequence[float | None] = [None] * len(window.doc_ids)
        if prepared_query.text:  # nothing is as likely after one passage as after another
            tasks = [
                asyncio.create_task(self._query_log_probability(prepared_query, doc_id, stats))
                for doc_id in window.doc_ids
            ]
            try:
                scores = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        known_scores = {
            doc_id: score for doc_id, score in zip(window.doc_ids, scores, strict=True) if score is not None
        }
        if known_scores:
            stats.repairs["missing"] += len(window.doc_ids) - len(known_scores)
        else:
            stats.repairs["unranked"] += 1
        result = WindowResult(
            replace(window, method="likelihood"), (order_by_score(window, known_scores),), known_scores
        )
        report = WindowReport(result=result, call_keys=stats.call_keys)
        report += stats
        report.repairs = +report.repairs
        return report

    async def _query_log_probability(
        self, prepared_query: PreparedQuery, doc_id: str, stats: CallStats
    ) -> float | None:
        """The log-probability of the query after this passage, or None if the reply does not tell."""
        repairs: Counter[str] = Counter()
        [message], _ = await self._prompt_builder.messages(prepared_query, [doc_id], self.model.context_length, repairs)
        stats.repairs.update(repairs)
        forced_text = f" {prepared_query.text}"
        prompt = message.content.removesuffix(forced_text)
        context = RequestContext(prepared_query.query.query_id, (doc_id,))
        request = Request((Message("user", prompt),), 1, 0.0, forced_text=forced_text, context=context)
        response = await self._calls.complete(request, "likelihood", stats)
        score = query_log_probability(response, forced_text)
        if score is not None and response.usage.completion_tokens > len(response.tokens or ()):
            stats.repairs["byte_tokens_skipped"] += 1
        return score


def query_log_probability(response: Response, forced_text: str) -> float | None:
    """What `response` tells of the probability of `forced_text` (natural logarithm); None if it says something else."""
    if response.text != forced_text or not response.tokens:
        return None
    total = fsum(token_log_probability for _, token_log_probability in response.tokens)
    return min(total, 0.0) if isfinite(total) else None


def order_by_score(window: Window, scores: Mapping[str, float]) -> WindowRanking:
    """`window` by `scores`, highest first; equal ones tied, those without one last, as they stood."""
    if not scores:
        return WindowRanking.unranked(window)
    ranked_ids = sorted((doc_id for doc_id in window.doc_ids if doc_id in scores), key=lambda doc_id: -scores[doc_id])
    tiers = [tuple(tier) for _, tier in groupby(ranked_ids, key=scores.__getitem__)]
    unranked_tiers = [(doc_id,) for doc_id in window.doc_ids if doc_id not in scores]
    return WindowRanking((*tiers, *unranked_tiers), frozenset(ranked_ids), True)
