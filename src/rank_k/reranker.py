"""The facade: a query and documents in, a ranking out; or a whole run.

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

from rank_k.engine import Engine, Job, QueryResult, RunStats, WindowRanker
from rank_k.errors import InputError
from rank_k.journal import Journal
from rank_k.loop_thread import LoopThread
from rank_k.models.base import Model
from rank_k.models.cached import CachedCalls
from rank_k.models.http import HttpModel
from rank_k.models.retry import RetryPolicy
from rank_k.models.single_flight import RunOnce
from rank_k.models.student import Student, default_model, find_student
from rank_k.strategies import make
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
    unranked_hits,
)
from rank_k.window.combined import CombinedRanker
from rank_k.window.listwise import ListwiseRanker, ListwiseSettings, WindowReport
from rank_k.window.prompt import PromptTemplate, read_template
from rank_k.window.query_likelihood import PASSAGE_TOKENS, QueryLikelihoodRanker
from rank_k.window.reasoning import ReasoningMode

PAPER: Mapping[str, Any] = {
    "strategy": "sliding",
    "window": 20,
    "stride": 10,
    "reasoning": "full",
    "passage_tokens": 450,
    "max_tokens": 8000,
    "temperature": 0.5,
}
"""How the Rank-K paper asks, which is how any model is asked but a student, which has settings of its own."""


class PassageSource(Protocol):
    """Where texts come from, if not from a mapping of ids to passages."""

    def get(self, doc_id: str, query_id: str | None = None) -> Passage:
        """The passage, for that query's sake. Raises `InputError` if there is none."""


class Reranker:
    """Ranks passages by a language model that reasons.

    `model`: with `server`, the name of a model there; without, the name or path of embedded weights or of a student
    (default: rank-k-nano, which comes with the package; by likelihood or with a `prompt`, the weights that `rank-k
    fetch` gets); or any object that is a `models.base.Model`.
    `by`: "comparison" of passages shown together, which all the settings below are about, or "likelihood" of the query
    after each passage by itself (see `likelihood.py`), which has no strategy, thought or answer; or "both": the one,
    the other, and the first stage (see `strategies.cascade`). By default it is comparison, or as a student wants to be
    asked, but likelihood for embedded weights that were not trained to compare; `strategy`, `think`, `prompt` or
    `samples` given, those are asked to compare as well.
    `strategy`: a name of `strategies.STRATEGIES`, `MODULE:NAME`, or a strategy; `fuse` weighs the first stage's order
    in those that fit, or, by both, beside comparison and likelihood. `journal`: a file to keep every call in, to go on
    from after an interruption.
    `prompt`: a template's file (see `prompt.read_template`).
    `think`: "full", "off", "auto", or reasoning tokens per window (see `thinking.Think`). `constrain`: hold answers
    to the grammar of a ranking where the server can. `samples`: ask each window so often, in different orders.
    Tokens are the model's; `passage_tokens` defaults to 450, by likelihood to 64; `max_tokens` (thought and answer)
    to 8,000, and to 512 for embedded models. What is None (and `temperature`, for which None is the server's own) is
    as a student was trained to be asked, or as in `PAPER`; `effective` says what it came to.
    `concurrency` (16; embedded 1) questions are asked at a time. Raises `InputError`s.

    May be used from any thread and any event loop. Close it, or use it in a `with`.
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
        given = {
            "strategy": None if strategy is None else _named(strategy),
            "window": window,
            "stride": stride,
            "reasoning": reasoning,
            "passage_tokens": passage_tokens,
            "max_tokens": max_tokens,
        }
        own: dict[str, Any] = dict(student.asking) if student else {"max_tokens": 512} if embedded else {}
        own_by: ScoringMethod | None = own.pop("method", None)
        self.effective_settings = {
            **PAPER,
            **own,
            **{name: value for name, value in given.items() if value is not None},
        }
        if temperature != "default":
            self.effective_settings["temperature"] = temperature
        asked = self.effective_settings
        numbers = {"depth": depth, "passage_tokens": asked["passage_tokens"], "max_tokens": asked["max_tokens"]}
        numbers["samples"] = samples
        for name, number in {**numbers, "concurrency": concurrency, "context_length": context_length}.items():
            if number is not None and number < 1:
                raise InputError(f"{name} is {number}", "give 1 or more")
        if method not in (None, "listwise", "likelihood", "combined"):
            raise InputError(f"by is {method!r}", "write comparison, likelihood or both")
        told = {
            "strategy": strategy,
            "reasoning": reasoning,
            "prompt": prompt,
            "samples": samples if samples > 1 else None,
        }
        compares = [name for name, value in told.items() if value is not None]  # what only comparison has use for
        if method == "likelihood" and compares:
            raise InputError(f"{compares[0]} is for comparison, not for likelihood", "leave one out")
        thinking = _thinking(asked["reasoning"])
        template = prompt if prompt is None or isinstance(prompt, PromptTemplate) else read_template(prompt)
        if prompt is None and student is not None:
            template = student.template
        self._is_combined = (method or own_by) == "combined"
        self._first_stage_weight = first_stage_weight
        inner = (
            1.0 if self._is_combined else first_stage_weight
        )  # by both, what comparison begins with is no more the first stage's
        self._make = partial(make, window=asked["window"], stride=asked["stride"], first_stage_weight=inner)
        self.strategy = self.make_strategy(asked["strategy"] if strategy is None else strategy)
        self.depth = depth
        self.concurrency = concurrency or (1 if embedded else 16)
        self.model = _model(
            model if student is None else student,
            server,
            api_key,
            server_type,
            revision,
            context_length,
            self.concurrency,
            read_timeout,
        )
        usual: ScoringMethod = "listwise" if compares else getattr(self.model, "default_method", "listwise")
        self.method: ScoringMethod = method or own_by or usual
        self.journal = Journal(journal)
        calls = CachedCalls(self.model, self.journal, retries, on_retry, self.concurrency)
        self.ranker: WindowRanker
        if self.method == "likelihood":
            self.effective_settings = {"passage_tokens": passage_tokens or PASSAGE_TOKENS}
            self.strategy = Single(max(depth, 2))
            self.ranker = QueryLikelihoodRanker(
                self.model, self.journal, self.effective_settings["passage_tokens"], calls=calls
            )
        else:
            settings = ListwiseSettings(
                asked["passage_tokens"],
                asked["max_tokens"],
                asked["temperature"],
                top_p,
                thinking,
                constrained,
                samples,
                label_words=student.verdicts if student is not None and prompt is None else (),
            )
            self.ranker = comparison = ListwiseRanker(self.model, self.journal, settings, template, calls=calls)
            if self._is_combined:
                self.ranker = CombinedRanker(QueryLikelihoodRanker(self.model, self.journal, calls=calls), comparison)
                self.effective_settings["first_stage_weight"] = first_stage_weight
        self.stats = RunStats()
        self._settings = {"method": self.method, "depth": depth, **self.effective_settings}
        self._ranked_in = ""  # the journal's run of what `rank` is asked
        self._ranked = count()
        self._loop = LoopThread()
        self._prepare = RunOnce(self._prepare_once)

    def rank(self, query: str, documents: Sequence[str | Mapping[str, Any]], **options: Any) -> RankedHits:
        """`documents` (texts, or mappings with a "text") in the order of their relevance to `query`.

        Options, for this query alone: `strategy` (a name or a strategy), `think`, `max_seconds` (stop then, with the
        best ranking so far), `name` (what the journal calls it), and the hooks `on_window(round, number, window)`,
        `on_text(round, number, piece)`, `on_asked(round, number, asked)` and `on_ranking(round, ranking)` of
        `engine.Engine`. Hooks are called from another thread and must not block.
        """
        return self._loop.run(self._rank(query, documents, **options))

    async def arank(self, query: str, documents: Sequence[str | Mapping[str, Any]], **options: Any) -> RankedHits:
        """`rank` for async code. Cancelling it cancels the server's work."""
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
        on_asked: Callable[[str, int, int, WindowReport], None] | None = None,
    ) -> Iterator[QueryResult]:
        """The run's queries, each with its new ranking, in the run's order and as soon as they are done.

        The first `depth` candidates of each are compared, the rest follow as they are. `max_seconds`: stop then,
        with the best ranking so far for every query. `tally` says meanwhile, and after, what it took.
        """
        pairs = run.items() if isinstance(run, Mapping) else run
        jobs = (self._job(query_id, candidates, queries, passages) for query_id, candidates in pairs)
        return self._loop.iterate(self._results(jobs, max_seconds, token_budget, run_name, on_asked))

    def prepare(self) -> None:
        """Connect (or start the embedded model) now rather than with the first query. Raises `ModelError`."""
        self._loop.run(self._prepare())

    def check(self, queries: Iterable[Query]) -> None:
        """Raise `QueryTooLong` for the first query that leaves no room in the context, before any is asked about."""

        async def each() -> None:
            await self._prepare()
            for query in queries:
                await self.ranker.check_query(query)

        self._loop.run(each())

    def make_strategy(self, strategy: str | Strategy) -> Strategy:
        """The strategy of that name, or that one, as it is asked here. Raises `InputError` if there is none."""
        plan = self._make(strategy) if isinstance(strategy, str) else strategy
        return (
            Combined(plan, self._first_stage_weight) if self._is_combined and not isinstance(plan, Combined) else plan
        )

    def close(self) -> None:
        """End the embedded model, close connections and the journal. Closing again does nothing."""
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
        head = candidates[: self.depth]
        texts = {candidate.doc_id: _passage(passages, candidate.doc_id, query_id) for candidate in head}
        return Job(query, head, texts, tuple(candidate.doc_id for candidate in candidates[self.depth :]))

    async def _results(
        self,
        jobs: Iterable[Job],
        max_seconds: float | None = None,
        token_budget: int | None = None,
        run_name: str = "",
        on_asked: Callable[[str, int, int, WindowReport], None] | None = None,
    ) -> AsyncIterator[QueryResult]:
        deadline = _deadline(max_seconds)
        await self._prepared(deadline)  # if not in time, the engine gives every query as it is
        engine = self._engine(self.strategy, deadline, run_name, token_budget=token_budget, on_asked=on_asked)
        self.stats = engine.stats
        results = engine.run(jobs)
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    async def _prepared(self, deadline: float | None, reasoning: ReasoningMode | None = None) -> bool:
        """Whether what must be known first was found out by the `deadline`. If not, it goes on: others wait for it."""
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
        """For one run. Without a name it gets one that no other has: runs at the same time share the journal."""
        return Engine(
            self.ranker,
            strategy,
            self.journal,
            slots=self.concurrency,
            run=run_name or uuid4().hex,
            deadline=deadline,
            **options,
        )

    def _run_of_ranked(self) -> str:
        """The journal's run of what `rank` is asked: one for each reranker, begun with the first question."""
        if not self._ranked_in:
            told = {"made": "one query at a time", "model": self.model.name, **self._settings, "name": uuid4().hex}
            self._ranked_in = self.journal.begin_run(told)
        return self._ranked_in

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
        on_text: Callable[[int, int, StreamChunk], None] | None = None,
        on_asked: Callable[[int, int, WindowReport], None] | None = None,
        on_ranking: Callable[[int, Ranking], None] | None = None,
    ) -> RankedHits:
        deadline = _deadline(max_seconds)
        for option, value in {"strategy": strategy, "reasoning": reasoning}.items():
            if value is not None and self.method == "likelihood":
                raise InputError(f"{option} is for comparison, not for likelihood", "leave it out")
        texts = [_text(document) for document in documents]
        plan = self.strategy if strategy is None else self.make_strategy(strategy)
        thinks = None if reasoning is None else _thinking(reasoning)
        if not await self._prepared(deadline, thinks):
            return unranked_hits(texts)
        candidates = tuple(Candidate(str(i), 1 / (i + 1)) for i in range(len(texts)))
        passages = {str(i): Passage(str(i), text) for i, text in enumerate(texts[: self.depth])}
        tail = tuple(str(i) for i in range(self.depth, len(texts)))
        position = next(self._ranked)
        job = Job(Query("", query), candidates[: self.depth], passages, tail, name or str(position + 1))
        traces: list[str] = []
        likelihoods: dict[str, float] = {}

        def asked_about(_query_id: str, round_number: int, number: int, asked: WindowReport) -> None:
            traces.extend(asked.traces)
            likelihoods.update(asked.result.likelihoods)
            if on_asked is not None:
                on_asked(round_number, number, asked)

        engine = self._engine(
            plan,
            deadline,
            self._run_of_ranked(),
            reasoning=thinks,
            first=position,
            on_window=on_window and (lambda _query_id, *of_window: on_window(*of_window)),
            on_asked=asked_about,
            on_text=on_text and (lambda _query_id, *of_window: on_text(*of_window)),
            on_ranking=on_ranking and (lambda _query_id, *of_round: on_ranking(*of_round)),
        )
        [result] = [result async for result in engine.run([job])]
        tally = engine.stats
        ranking = result.ranking
        chances = ranking.probability or {}
        hits = tuple(
            Hit(int(doc_id), texts[int(doc_id)], rank, 1 / rank, tied, chances.get(doc_id), likelihoods.get(doc_id))
            for rank, (doc_id, tied) in enumerate(zip(ranking.doc_ids, ranking.tied, strict=True), 1)
        )
        return RankedHits(
            hits,
            tuple(traces),
            tally.usage,
            dict(tally.repairs),
            tally.unranked_windows,
            result.finished,
            len(tail),
        )


def _named(strategy: str | Strategy) -> str:
    return strategy if isinstance(strategy, str) else type(strategy).__name__


def _deadline(max_seconds: float | None) -> float | None:
    return None if max_seconds is None else time.monotonic() + max_seconds


def _thinking(reasoning: str | int | ReasoningMode) -> ReasoningMode:
    return reasoning if isinstance(reasoning, ReasoningMode) else ReasoningMode.parse(str(reasoning))


def _model(
    model: str | Path | Student | Model | None,
    server: str | None,
    api_key: str | None,
    server_type: str,
    revision: str,
    context_length: int | None,
    slots: int,
    read_timeout: float | None,
) -> Model:
    from rank_k.models.embedded import EmbeddedModel

    if isinstance(model, Student):
        return EmbeddedModel(model.weights, adapter=model.adapter, context_length=context_length, slots=slots)
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
    assert model is not None, "without a server, somebody is named"
    return EmbeddedModel(model, context_length=context_length, slots=slots)


def _passage(passages: Mapping[str, Passage] | PassageSource, doc_id: str, query_id: str) -> Passage:
    if not isinstance(passages, Mapping):
        return passages.get(doc_id, query_id)
    if doc_id not in passages:
        raise InputError(f"document {doc_id} of query {query_id} has no text", "add it to the passages")
    return passages[doc_id]


def _text(document: str | Mapping[str, Any]) -> str:
    if isinstance(document, str):
        return document
    if isinstance(document, Mapping) and isinstance(document.get("text"), str):
        return str(document["text"])
    raise InputError(f"a document is of type {type(document).__name__}", 'give texts, or mappings with a "text"')
