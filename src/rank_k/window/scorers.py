"""Rank windows by passage scores, and compute query likelihood as such a score.

Query likelihood is the probability that the model assigns to the query after reading the passage. Language models can
compute it without having been trained to rank. It was introduced by Ponte and Croft (1998), and applied to large
language models by Sachan et al. (2022, arXiv 2204.07496). Log-likelihoods are not divided by the length of the query,
because it is the same for all passages of the query.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from math import fsum, isfinite
from typing import Protocol

from rank_k.errors import InputError
from rank_k.models.base import Model
from rank_k.option_values import ReasoningMode
from rank_k.strategies.aggregate import order_by_score
from rank_k.types import (
    Message,
    OnChunk,
    Passage,
    Query,
    Request,
    RequestContext,
    Response,
    Window,
    WindowResult,
)
from rank_k.window.base import WindowRanker, WindowReport
from rank_k.window.prompt import PromptTemplate
from rank_k.window.prompt_builder import PreparedQuery, PromptBuilder

PASSAGE_TOKENS = 64
"""Tokens per passage for query likelihood, chosen on held-out collections (docs/results/query-likelihood.md)."""

LIKELIHOOD_TEMPLATE = PromptTemplate("Document: ", "\nSearch query: {query}", passage="{text}", name="query likelihood")
"""The prompt about one passage. It ends with a space and the query, whose probability is the score."""


class Scorer(Protocol):
    """Scores each passage independently of the others. `ScoreRanker` ranks windows by the scores.

    `prompt_builder` sanitizes and truncates the queries and passages that `score` receives.
    """

    prompt_builder: PromptBuilder

    async def prepare(self) -> None:
        """Raise `InputError` if the scorer cannot work with its model. Runs once, before the first `score`."""

    async def score(self, query: Query, passages: Sequence[Passage], report: WindowReport) -> list[float | None]:
        """Return the score of each passage, where higher is better; None for a passage without a usable score.

        Adds its calls and repairs to `report`. Raises `ModelError` if a model does not respond.
        """


class ScoreRanker(WindowRanker):
    """Rank windows by the scores of `scorer`."""

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer
        self.prompt_builder = scorer.prompt_builder

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Raise `InputError` if the scorer cannot score."""
        await self.scorer.prepare()

    async def rank(
        self,
        prepared_query: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_chunk: OnChunk | None = None,
    ) -> WindowReport:
        """Rank the passages of a window: highest score first, equal scores tied.

        Passages without a score come last in their input order and are counted as missing. There is no reasoning and no
        text: `reasoning` has no effect, and `on_chunk` is not called.
        """
        report = WindowReport.unranked(window)
        scores: Sequence[float | None] = []
        if prepared_query.text:  # without a query, all passages are equal
            query = Query(prepared_query.query.query_id, prepared_query.text)
            passages = [
                Passage(doc_id, await self.prompt_builder.fit_passage(prepared_query, doc_id, report.repairs))
                for doc_id in window.doc_ids
            ]
            scores = await self.scorer.score(query, passages, report)
        known_scores = {
            doc_id: score for doc_id, score in zip(window.doc_ids, scores, strict=False) if score is not None
        }
        if not known_scores:
            report.repairs["unranked"] += 1
        elif missing_count := len(window.doc_ids) - len(known_scores):
            report.repairs["missing"] += missing_count
        report.result = WindowResult(
            replace(window, method="likelihood"), (order_by_score(window, known_scores),), known_scores
        )
        return report


class QueryLikelihoodScorer:
    """Scores each passage by the log-likelihood of the query after the passage.

    It sends one request per passage, all of them concurrently. Passages are truncated to `passage_tokens`.
    """

    def __init__(self, model: Model, passage_tokens: int = PASSAGE_TOKENS) -> None:
        self.model = model
        self.prompt_builder = PromptBuilder(model, LIKELIHOOD_TEMPLATE, passage_tokens, max_tokens=1)

    async def prepare(self) -> None:
        """Raise `InputError` if the model does not return the probability of a given text."""
        if not self.model.capabilities.scores_given_text:
            raise InputError(
                f"{self.model.name} does not return the probability of a given text, which query likelihood needs",
                "use the method listwise, the embedded model, or a llama.cpp server",
            )

    async def score(self, query: Query, passages: Sequence[Passage], report: WindowReport) -> list[float | None]:
        tasks = [asyncio.create_task(self._log_probability(query, passage, report)) for passage in passages]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _log_probability(self, query: Query, passage: Passage, report: WindowReport) -> float | None:
        """Return the log-probability of the query after this passage, or None if the response does not contain it."""
        forced_text = f" {query.text}"
        [message] = LIKELIHOOD_TEMPLATE.messages(query.text, [passage.text])
        request = Request(
            (Message("user", message.content.removesuffix(forced_text)),),
            max_tokens=1,
            temperature=0.0,
            forced_text=forced_text,
            context=RequestContext(query.query_id, (passage.doc_id,), purpose="likelihood"),
        )
        response = await self.model.complete(request)
        report.add_call(request, response)
        score = query_log_probability(response, forced_text)
        if score is not None and response.usage.completion_tokens > len(response.tokens or ()):
            report.repairs["byte_tokens_skipped"] += 1
        return score


def query_log_probability(response: Response, forced_text: str) -> float | None:
    """Return the log-probability (natural logarithm) of `forced_text`; None if `response` is not about that text."""
    if response.text != forced_text or not response.tokens:
        return None
    total = fsum(token_log_probability for _, token_log_probability in response.tokens)
    return min(total, 0.0) if isfinite(total) else None
