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

TEMPLATE = PromptTemplate("Document: ", "\nSearch query: {query}", passage="{text}", name="query likelihood")
"""Of one passage. The query is what is spelt, with the blank before it; the text before that is the prompt."""


class QueryLikelihoodRanker:
    """Orders windows by the query's likelihood after each of their passages. In an `Engine`, an `ListwiseRanker`'s
    equal.

    `passage_tokens`: passages are cut to this. Each passage is one call, kept in `journal`; those of a window are
    made at the same time, as `slots` allow. `calls`: those of another asker, to share its slots.
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        passage_tokens: int = PASSAGE_TOKENS,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        slots: int = 1_000_000,
        calls: CachedCalls | None = None,
    ) -> None:
        self.model = model
        self._calls = calls or CachedCalls(model, journal, retries, on_retry, slots)
        self._prompt_builder = PromptBuilder(model, TEMPLATE, passage_tokens, 1)

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
        texts: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_text: OnChunk | None = None,
    ) -> WindowReport:
        """The window's passages, likeliest query first. Raises `ModelError` when the model cannot be had.

        Nothing is thought or said here: `think` changes nothing, and `on_text` hears nothing. A passage without a
        usable reply comes after those that have one, and is counted as missing.
        """
        spent = CallStats()
        scores: Sequence[float | None] = [None] * len(window.doc_ids)
        if texts.text:  # nothing is as likely after one passage as after another
            tasks = [asyncio.create_task(self._likelihood(texts, doc_id, spent)) for doc_id in window.doc_ids]
            try:
                scores = await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
        told = {doc_id: score for doc_id, score in zip(window.doc_ids, scores, strict=True) if score is not None}
        if told:
            spent.repairs["missing"] += len(window.doc_ids) - len(told)
        else:
            spent.repairs["unranked"] += 1
        return WindowReport(
            WindowResult(replace(window, method="likelihood"), (order_by_score(window, told),), told),
            (),
            tuple(spent.calls),
            spent.usage,
            +spent.repairs,
            spent.new_calls,
            spent.seconds,
        )

    async def _likelihood(self, texts: PreparedQuery, doc_id: str, spent: CallStats) -> float | None:
        """The log-probability of the query after this passage, or None if the reply does not tell."""
        repairs: Counter[str] = Counter()
        [message], _ = await self._prompt_builder.messages(texts, [doc_id], self.model.context_length, repairs)
        spent.repairs.update(repairs)
        spelling = f" {texts.text}"
        prompt = message.content.removesuffix(spelling)
        subject = RequestContext(texts.query.query_id, (doc_id,))
        question = Request((Message("user", prompt),), 1, 0.0, forced_text=spelling, context=subject)
        reply = await self._calls.complete(question, "likelihood", spent)
        score = log_probability(reply, spelling)
        if score is not None and reply.usage.completion_tokens > len(reply.tokens or ()):
            spent.repairs["byte_tokens_skipped"] += 1
        return score


def log_probability(reply: Response, spelling: str) -> float | None:
    """What `reply` tells of the probability of `spelling` (natural logarithm); None if it says something else."""
    if reply.text != spelling or not reply.tokens:
        return None
    total = fsum(probability for _, probability in reply.tokens)
    return min(total, 0.0) if isfinite(total) else None


def order_by_score(window: Window, scores: Mapping[str, float]) -> WindowRanking:
    """`window` by `scores`, highest first; equal ones tied, those without one last, as they stood."""
    if not scores:
        return WindowRanking.unranked(window)
    known = sorted((doc_id for doc_id in window.doc_ids if doc_id in scores), key=lambda doc_id: -scores[doc_id])
    tiers = [tuple(tier) for _, tier in groupby(known, key=scores.__getitem__)]
    rest = [(doc_id,) for doc_id in window.doc_ids if doc_id not in scores]
    return WindowRanking((*tiers, *rest), frozenset(known), True)
