"""The facade: rerank the documents of one query, or a run.

from rank_k import Reranker
with Reranker("hltcoe/Rank-K-32B", server="http://localhost:8000/v1") as reranker:
    for hit in reranker.rank("why is the sky blue", passages):
        print(hit.rank, hit.text)
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, Self
from uuid import uuid4

from rank_k.engine import Engine, Job, QueryResult, RunStats
from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.loop_thread import LoopThread
from rank_k.models.base import Model
from rank_k.models.cached import CachedModel
from rank_k.models.http import HttpModel
from rank_k.models.retry import RetryPolicy
from rank_k.models.run_once import run_once
from rank_k.models.student import Student, default_model, find_student
from rank_k.strategies import make_strategy
from rank_k.strategies.base import Strategy
from rank_k.strategies.combined import Combined
from rank_k.strategies.single import Single
from rank_k.types import (
    Candidate,
    Hit,
    Passage,
    Query,
    RankedHits,
    Ranking,
    ScoringMethod,
    StreamChunk,
    Window,
    keep_input_order,
)
from rank_k.window.base import WindowRanker, WindowReport
from rank_k.window.combined import CombinedRanker
from rank_k.window.listwise import ListwiseRanker, ListwiseSettings
from rank_k.window.prompt import PromptTemplate, read_template
from rank_k.window.reasoning import ReasoningMode
from rank_k.window.repetition import StopOnRepetition
from rank_k.window.scorers import PASSAGE_TOKENS, QueryLikelihoodScorer, ScoreRanker

PAPER_SETTINGS: Mapping[str, Any] = {
    "strategy": "sliding",
    "window": 20,
    "stride": 10,
    "reasoning": "full",
    "passage_tokens": 450,
    "max_tokens": 8000,
    "temperature": 0.5,
}
"""The settings of the Rank-K paper: the defaults for all models but students, which have their own."""


class PassageSource(Protocol):
    """A source of passages that is not a mapping of ids to passages."""

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """Return the passage of a document, which may depend on the query. Raises `InputError` if there is none."""


class Reranker:
    """Reranks passages with a reasoning language model.

    Args:
        model: with `server`, the name of a model on it. Without: the name or path of embedded weights or of a student
            (default: rank-k-nano, which is part of the package; for `method="likelihood"` or with a `prompt`, the
            weights that `rank-k fetch` downloads). Or any object that is a `models.base.Model`.
        method: "listwise" compares the passages of a window in one prompt; all settings below are about it.
            "likelihood" scores each passage by the log-likelihood of the query (see `window.scorers`), without
            a strategy, reasoning or answer. "combined" adds up listwise, likelihood and first-stage scores (see
            `strategies.combined`). Default: the student's method; likelihood for embedded weights that were not trained
            to rank, unless `strategy`, `reasoning`, `prompt` or `samples` are given; else listwise.
        strategy: a name of `strategies.STRATEGIES`, `MODULE:NAME`, or a strategy.
        first_stage_weight: weight of the first-stage order in strategies that fit scores and in "combined".
        journal: the file that stores every call, so that an interrupted run can be resumed.
        prompt: the file of a template (see `window.prompt.read_template`).
        reasoning: "full", "off", "auto", or reasoning tokens per window (see `window.reasoning.ReasoningMode`).
        constrained: make every answer a valid ranking by constrained decoding, where the server supports it.
        samples: rankings per window, each with the passages in another order.
        passage_tokens: tokens per passage, counted by the model's tokenizer (default: 450; likelihood: 64).
        max_tokens: tokens of reasoning and answer together (default: 8,000; embedded models: 512).
        temperature: None uses the server's own.
        concurrency: calls in flight (default: 16; embedded: 1).

    Settings that are None (and `temperature` "default") are those of the student, else `PAPER_SETTINGS`;
    `effective_settings` has the result. Raises `InputError` for invalid settings. A reranker may be used from any
    thread and any event loop. Close it, or use it in a `with` statement.
    """

    def __init__(
        self,
        model: str | Path | Model | None = None,
        *,
        server: str | None = None,
        api_key: str | None = None,
        server_type: str = "auto",
        revision: str = "",
        context_length: int | None = None,
        method: ScoringMethod | None = None,
        strategy: str | Strategy | None = None,
        depth: int = 100,
        window: int | None = None,
        stride: int | None = None,
        first_stage_weight: float = 1.0,
        reasoning: str | int | ReasoningMode | None = None,
        passage_tokens: int | None = None,
        max_tokens: int | None = None,
        temperature: float | Literal["default"] | None = "default",
        top_p: float | None = None,
        prompt: str | Path | PromptTemplate | None = None,
        constrained: bool = True,
        samples: int = 1,
        concurrency: int | None = None,
        journal: str | Path | None = None,
        retries: RetryPolicy = RetryPolicy(),
        read_timeout: float | None = None,
        on_retry: Callable[[Exception, float], None] | None = None,
    ) -> None:
        embedded = server is None and (model is None or isinstance(model, str | Path))
        if embedded and model is None:
            model = default_model(method if prompt is None else "likelihood")
        student = find_student(model) if embedded and isinstance(model, str | Path) else None
        arguments = {
            "strategy": None if strategy is None else _strategy_name(strategy),
            "window": window,
            "stride": stride,
            "reasoning": reasoning,
            "passage_tokens": passage_tokens,
            "max_tokens": max_tokens,
        }
        defaults: dict[str, Any] = dict(student.asking) if student else {"max_tokens": 512} if embedded else {}
        default_method: ScoringMethod | None = defaults.pop("method", None)
        self.effective_settings = {
            **PAPER_SETTINGS,
            **defaults,
            **{name: value for name, value in arguments.items() if value is not None},
        }
        if temperature != "default":
            self.effective_settings["temperature"] = temperature
        effective = self.effective_settings
        numbers = {"depth": depth, "passage_tokens": effective["passage_tokens"], "max_tokens": effective["max_tokens"]}
        numbers["samples"] = samples
        for name, number in {**numbers, "concurrency": concurrency, "context_length": context_length}.items():
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}", "give 1 or more")
        if method not in (None, "listwise", "likelihood", "combined"):
            raise InputError(f"method is {method!r}", "write listwise, likelihood or combined")
        listwise_options = {
            "strategy": strategy,
            "reasoning": reasoning,
            "prompt": prompt,
            "samples": samples if samples > 1 else None,
        }
        given_options = [name for name, value in listwise_options.items() if value is not None]
        if method == "likelihood" and given_options:
            raise InputError(f"{given_options[0]} is for comparison, not for likelihood", "leave one out")
        reasoning_mode = _parse_reasoning(effective["reasoning"])
        template = prompt if prompt is None or isinstance(prompt, PromptTemplate) else read_template(prompt)
        if prompt is None and student is not None:
            template = student.template
        self._is_combined = (method or default_method) == "combined"
        self._first_stage_weight = first_stage_weight
        # In "combined", the listwise strategy starts from the likelihood ranking and not from the first stage's.
        strategy_weight = 1.0 if self._is_combined else first_stage_weight
        self._make_by_name = partial(
            make_strategy, window=effective["window"], stride=effective["stride"], first_stage_weight=strategy_weight
        )
        self.strategy = self.make_strategy(effective["strategy"] if strategy is None else strategy)
        self.depth = depth
        self.concurrency = concurrency or (1 if embedded else 16)
        self.model = _make_model(
            model if student is None else student,
            server,
            api_key,
            server_type,
            revision,
            context_length,
            self.concurrency,
            read_timeout,
        )
        model_method: ScoringMethod = "listwise" if given_options else getattr(self.model, "default_method", "listwise")
        self.method: ScoringMethod = method or default_method or model_method
        self.journal = Journal(journal)
        cached_model = CachedModel(StopOnRepetition(self.model), self.journal, retries, on_retry, self.concurrency)
        self.ranker: WindowRanker
        if self.method == "likelihood":
            self.effective_settings = {"passage_tokens": passage_tokens or PASSAGE_TOKENS}
            self.strategy = Single(max(depth, 2))
            self.ranker = ScoreRanker(QueryLikelihoodScorer(cached_model, self.effective_settings["passage_tokens"]))
        else:
            settings = ListwiseSettings(
                effective["passage_tokens"],
                effective["max_tokens"],
                effective["temperature"],
                top_p,
                reasoning_mode,
                constrained,
                samples,
                label_words=student.verdicts if student is not None and prompt is None else (),
            )
            self.ranker = listwise = ListwiseRanker(cached_model, settings, template)
            if self._is_combined:
                self.ranker = CombinedRanker(QueryLikelihoodScorer(cached_model), listwise)
                self.effective_settings["first_stage_weight"] = first_stage_weight
        self.stats = RunStats()
        self._settings = {"method": self.method, "depth": depth, **self.effective_settings}
        self._rank_run = ""  # the journal's run of the queries of `rank`
        self._rank_positions = count()
        self._loop = LoopThread()
        self._prepare = run_once(self._prepare_once)

    def rank(self, query: str, documents: Sequence[str | Mapping[str, Any]], **options: Any) -> RankedHits:
        """Return `documents` (texts, or mappings with a "text") in the order of their relevance to `query`.

        Options for this query: `strategy` (a name or a strategy), `reasoning`, `max_seconds` (stop then and return the
        best ranking so far), `name` (the query's id in the journal), and the hooks `on_window(round, number, window)`,
        `on_chunk(round, number, chunk)`, `on_result(round, number, report)` and `on_ranking(round, ranking)` (see
        `engine.Engine`). Hooks are called from another thread and must not block.
        """
        return self._loop.run(self._rank(query, documents, **options))

    async def arank(self, query: str, documents: Sequence[str | Mapping[str, Any]], **options: Any) -> RankedHits:
        """`rank` for async code. Cancelling it cancels the requests in flight."""
        return await asyncio.wrap_future(self._loop.submit(self._rank(query, documents, **options)))

    def rerank(
        self,
        run: Mapping[str, Sequence[Candidate]] | Iterable[tuple[str, Sequence[Candidate]]],
        queries: Mapping[str, Query],
        passages: Mapping[str, Passage] | PassageSource,
        *,
        max_seconds: float | None = None,
        token_budget: int | None = None,
        run_name: str = "",
        on_result: Callable[[str, int, int, WindowReport], None] | None = None,
    ) -> Iterator[QueryResult]:
        """Yield each query of the run with its new ranking, in the order of the run, as soon as it is finished.

        The first `depth` candidates of each query are reranked, the others follow in their order. `max_seconds`: stop
        then, with the best ranking so far for every query. `stats` counts calls and tokens during and after the run.
        """
        pairs = run.items() if isinstance(run, Mapping) else run
        jobs = (self._job(query_id, candidates, queries, passages) for query_id, candidates in pairs)
        return self._loop.iterate(self._results(jobs, max_seconds, token_budget, run_name, on_result))

    def prepare(self) -> None:
        """Connect (or start the embedded model) now rather than with the first query. Raises `ModelError`."""
        self._loop.run(self._prepare())

    def check(self, queries: Iterable[Query]) -> None:
        """Raise `QueryTooLong` for the first query that leaves no space for passages in the model's context."""

        async def check_all() -> None:
            await self._prepare()
            for query in queries:
                await self.ranker.check_query(query)

        self._loop.run(check_all())

    def make_strategy(self, strategy: str | Strategy) -> Strategy:
        """Return the strategy of that name, or `strategy` itself, set up for `method`. Raises `InputError`."""
        made = self._make_by_name(strategy) if isinstance(strategy, str) else strategy
        if self._is_combined and not isinstance(made, Combined):
            return Combined(made, self._first_stage_weight)
        return made

    def close(self) -> None:
        """Stop the embedded model and close the connections and the journal. Closing again does nothing."""
        if self._loop.stopped:
            return
        self._loop.stop(self.model.close())
        self.journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- on the background loop ---

    async def _prepare_once(self) -> None:
        await self.model.prepare()
        await self.ranker.prepare()

    def _job(
        self,
        query_id: str,
        candidates: Sequence[Candidate],
        queries: Mapping[str, Query],
        passages: Mapping[str, Passage] | PassageSource,
    ) -> Job:
        query = queries.get(query_id)
        if query is None:
            raise InputError(f"query {query_id} of the run has no text", "add it to the queries")
        ranked = candidates[: self.depth]
        candidate_passages = {
            candidate.doc_id: _find_passage(passages, candidate.doc_id, query_id) for candidate in ranked
        }
        return Job(query, ranked, candidate_passages, tuple(candidate.doc_id for candidate in candidates[self.depth :]))

    async def _results(
        self,
        jobs: Iterable[Job],
        max_seconds: float | None = None,
        token_budget: int | None = None,
        run_name: str = "",
        on_result: Callable[[str, int, int, WindowReport], None] | None = None,
    ) -> AsyncIterator[QueryResult]:
        deadline = _deadline(max_seconds)
        await self._prepare_until(deadline)  # after it, the engine keeps every input order
        engine = self._engine(self.strategy, deadline, run_name, token_budget=token_budget, on_result=on_result)
        self.stats = engine.stats
        results = engine.run(jobs)
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    async def _prepare_until(self, deadline: float | None, reasoning: ReasoningMode | None = None) -> bool:
        """Return whether model and ranker are prepared before `deadline`. If not, other callers still wait for them."""
        try:
            async with asyncio.timeout(None if deadline is None else deadline - time.monotonic()) as limit:
                await self._prepare()
                if reasoning is not None:
                    await self.ranker.prepare(reasoning)
        except TimeoutError:
            if not limit.expired():
                raise
            return False
        return True

    def _engine(self, strategy: Strategy, deadline: float | None, run_name: str = "", **options: Any) -> Engine:
        """Return an engine for one run. The default run name is unique, because concurrent runs share the journal."""
        return Engine(
            self.ranker,
            strategy,
            self.journal,
            concurrency=self.concurrency,
            run=run_name or uuid4().hex,
            deadline=deadline,
            **options,
        )

    def _begin_rank_run(self) -> str:
        """Return the name of the journal's run of the queries of `rank`, which starts with the first query."""
        if not self._rank_run:
            settings = {"made": "one query at a time", "model": self.model.name, **self._settings, "name": uuid4().hex}
            self._rank_run = self.journal.begin_run(settings)
        return self._rank_run

    async def _rank(
        self,
        query: str,
        documents: Sequence[str | Mapping[str, Any]],
        *,
        max_seconds: float | None = None,
        strategy: str | Strategy | None = None,
        reasoning: str | int | ReasoningMode | None = None,
        name: str = "",
        on_window: Callable[[int, int, Window], None] | None = None,
        on_chunk: Callable[[int, int, StreamChunk], None] | None = None,
        on_result: Callable[[int, int, WindowReport], None] | None = None,
        on_ranking: Callable[[int, Ranking], None] | None = None,
    ) -> RankedHits:
        deadline = _deadline(max_seconds)
        for option, value in {"strategy": strategy, "reasoning": reasoning}.items():
            if value is not None and self.method == "likelihood":
                raise InputError(f"{option} is for comparison, not for likelihood", "leave it out")
        texts = [_document_text(document) for document in documents]
        query_strategy = self.strategy if strategy is None else self.make_strategy(strategy)
        reasoning_mode = None if reasoning is None else _parse_reasoning(reasoning)
        if not await self._prepare_until(deadline, reasoning_mode):
            return keep_input_order(texts)
        candidates = tuple(Candidate(str(i), 1 / (i + 1)) for i in range(len(texts)))
        passages = {str(i): Passage(str(i), text) for i, text in enumerate(texts[: self.depth])}
        tail = tuple(str(i) for i in range(self.depth, len(texts)))
        position = next(self._rank_positions)
        job = Job(Query("", query), candidates[: self.depth], passages, tail, name or str(position + 1))
        traces: list[str] = []
        likelihoods: dict[str, float] = {}

        def collect_result(_query_id: str, round_number: int, number: int, report: WindowReport) -> None:
            traces.extend(report.traces)
            likelihoods.update(report.result.likelihoods)
            if on_result is not None:
                on_result(round_number, number, report)

        engine = self._engine(
            query_strategy,
            deadline,
            self._begin_rank_run(),
            reasoning=reasoning_mode,
            first_position=position,
            on_window=on_window and (lambda _query_id, *arguments: on_window(*arguments)),
            on_result=collect_result,
            on_chunk=on_chunk and (lambda _query_id, *arguments: on_chunk(*arguments)),
            on_ranking=on_ranking and (lambda _query_id, *arguments: on_ranking(*arguments)),
        )
        [result] = [result async for result in engine.run([job])]
        stats = engine.stats
        ranking = result.ranking
        probabilities = ranking.probability or {}
        hits = tuple(
            Hit(
                int(doc_id),
                texts[int(doc_id)],
                rank,
                1 / rank,
                tied,
                probabilities.get(doc_id),
                likelihoods.get(doc_id),
            )
            for rank, (doc_id, tied) in enumerate(zip(ranking.doc_ids, ranking.tied, strict=True), 1)
        )
        return RankedHits(
            hits,
            tuple(traces),
            stats.usage,
            dict(stats.repairs),
            stats.unranked_windows,
            result.finished,
            len(tail),
        )


def _strategy_name(strategy: str | Strategy) -> str:
    return strategy if isinstance(strategy, str) else type(strategy).__name__


def _deadline(max_seconds: float | None) -> float | None:
    return None if max_seconds is None else time.monotonic() + max_seconds


def _parse_reasoning(reasoning: str | int | ReasoningMode) -> ReasoningMode:
    return reasoning if isinstance(reasoning, ReasoningMode) else ReasoningMode.parse(str(reasoning))


def _make_model(
    model: str | Path | Student | Model | None,
    server: str | None,
    api_key: str | None,
    server_type: str,
    revision: str,
    context_length: int | None,
    concurrency: int,
    read_timeout: float | None,
) -> Model:
    from rank_k.models.embedded import EmbeddedModel

    if isinstance(model, Student):
        return EmbeddedModel(
            model.weights, adapter=model.adapter, context_length=context_length, concurrency=concurrency
        )
    if model is not None and not isinstance(model, str | Path):
        return model
    if server is not None:
        return HttpModel(
            server,
            None if model is None else str(model),
            api_key=api_key,
            server_type=server_type,
            context_length=context_length,
            revision=revision,
            read_timeout=read_timeout,
        )
    assert model is not None, "without a server, a model is given"
    return EmbeddedModel(model, context_length=context_length, concurrency=concurrency)


def _find_passage(passages: Mapping[str, Passage] | PassageSource, doc_id: str, query_id: str) -> Passage:
    if not isinstance(passages, Mapping):
        return passages.get(doc_id, query_id)
    if doc_id not in passages:
        raise InputError(f"document {doc_id} of query {query_id} has no text", "add it to the passages")
    return passages[doc_id]


def _document_text(document: str | Mapping[str, Any]) -> str:
    if isinstance(document, str):
        return document
    if isinstance(document, Mapping) and isinstance(document.get("text"), str):
        return str(document["text"])
    raise InputError(f"a document is of type {type(document).__name__}", 'give texts, or mappings with a "text"')
