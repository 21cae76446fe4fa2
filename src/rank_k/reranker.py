"""The main class of Rank-K: rerank the documents of one query, or a run."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack
from uuid import uuid4

from rank_k import build
from rank_k.document_ranker import DocumentRanker
from rank_k.engine import Engine, Job, QueryResult, RunStats, deadline_after
from rank_k.journal import Journal
from rank_k.loop_thread import LoopThread
from rank_k.models.retry import RetryPolicy
from rank_k.models.run_once import run_once
from rank_k.option_values import ReasoningMode
from rank_k.types import Candidate, Document, Passage, PassageSource, Query, RankedHits, ScoringMethod
from rank_k.window.base import WindowReport

if TYPE_CHECKING:
    from rank_k.reranker_arguments import QueryArguments, RerankerArguments


class Reranker:
    """Reranks passages with a reasoning language model.

    Args:
        model: With `server`, the name of a model on the server. Without `server`, the name or path of embedded weights
            or of a distilled model, called a student (default: rank-k-nano, which is part of the package; for
            `method="likelihood"` or with a `prompt`, the weights that `rank-k fetch` downloads). It can also be an
            object that implements `models.base.Model`.
        preset: "paper", "fast", "balanced" or "thorough" (see `options.PRESETS`).
        journal: The file that stores every call, so that an interrupted run can be resumed (default: a temporary one).
        retries: How often and how long failed calls are retried.
        on_retry: Called with the error and the seconds until the next attempt.
        options: The options of `rank_k.options`, such as `server`, `method`, `strategy`, `depth`, `reasoning` and
            `temperature`. The value of an option that is left out comes from the preset, the student or the default.

    Attributes:
        options: The resolved options. `options.sources` contains the source of each value.
        stats: Counts of the last call of `rerank`, during and after it.

    `strategy`, `model` and `journal` are the parts that were built from the arguments.

    Raises `InputError` if an option is invalid. A reranker may be used from any thread and any event loop. Close it, or
    use it in a `with` or `async with` statement.
    """

    def __init__(
        self,
        model: build.ModelSource = None,
        *,
        preset: str | None = None,
        journal: str | Path | Journal | None = None,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        **options: Unpack[RerankerArguments],
    ) -> None:
        self.options, local_model = build.resolve_options(model, dict(options), preset)
        self.strategy = build.build_strategy(self.options.strategy, self.options)
        self.model = build.build_model(model, local_model, self.options)
        self.journal = journal if isinstance(journal, Journal) else Journal(journal)
        self.ranker = build.build_ranker(self.model, self.journal, retries, on_retry, self.options, local_model)
        self.stats = RunStats()
        self._prepare = run_once(self._prepare_once)
        self._loop = LoopThread()
        self._close = weakref.finalize(self, build.close_parts, self._loop, self.model, self.journal)

    @property
    def method(self) -> ScoringMethod:
        """The scoring method."""
        return self.options.method or "listwise"

    def rank(self, query: str, documents: Iterable[Document], **arguments: Unpack[QueryArguments]) -> RankedHits:
        """Return `documents` in the order of their relevance to `query`.

        Args:
            query: The text of the query.
            documents: Texts, or mappings with a "text".
            arguments: For this query: `top_n` (return only the first N hits), `strategy` (a name or a strategy),
                `reasoning`, `max_seconds` (stop then and return the best ranking so far), `name` (the query's id in the
                journal), and the hooks `on_window(round, number, window)`, `on_chunk(round, number, chunk)`,
                `on_result(round, number, report)` and `on_ranking(round, ranking)` (see `engine.Engine`). Hooks are
                called from another thread and must not block.
        """
        return self._loop.run(self._documents.rank(query, documents, **arguments))

    async def arank(self, query: str, documents: Iterable[Document], **arguments: Unpack[QueryArguments]) -> RankedHits:
        """Do the same as `rank` in async code. Cancellation cancels the requests in flight."""
        return await asyncio.wrap_future(self._loop.submit(self._documents.rank(query, documents, **arguments)))

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
        """Yield the new ranking of each query, in the order of the run, as soon as it is available.

        The first `depth` candidates of each query are reranked, and the others follow in their order. `max_seconds` and
        `token_budget`: stop after this time or this many tokens, with the best ranking so far for every query. `stats`
        counts calls and tokens during and after the run.
        """
        pairs = run.items() if isinstance(run, Mapping) else run
        jobs = build.build_jobs(pairs, queries, passages, self.options.depth)
        return self._loop.iterate(self._results(jobs, max_seconds, token_budget, run_name, on_result))

    def prepare(self) -> None:
        """Connect to the server or start the embedded model now, not at the first query. Raises `ModelError`."""
        self._loop.run(self._prepare())

    def check(self, queries: Iterable[Query]) -> None:
        """Raise `QueryTooLong` for the first query that leaves no space for passages in the model's context."""

        async def check_all() -> None:
            await self._prepare()
            for query in queries:
                await self.ranker.check_query(query)

        self._loop.run(check_all())

    def close(self) -> None:
        """Stop the embedded model and close the connections and the journal. Closing again does nothing."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await asyncio.to_thread(self.close)

    @cached_property
    def _documents(self) -> DocumentRanker:
        """The ranker of documents for single queries."""
        return DocumentRanker(self._engine, self._prepare_until, self.journal, self.model, self.options, self.strategy)

    # --- on the background loop ---

    async def _prepare_once(self) -> None:
        await self.model.prepare()
        await self.ranker.prepare()

    async def _results(
        self, jobs: Iterable[Job], max_seconds: float | None, token_budget: int | None, run_name: str, on_result: Any
    ) -> AsyncGenerator[QueryResult, None]:
        deadline = deadline_after(max_seconds)
        await self._prepare_until(deadline)  # if the deadline passes, the engine keeps the input order of every query
        engine = self._engine(
            strategy=self.strategy,
            run=run_name or uuid4().hex,  # concurrent runs share the journal
            deadline=deadline,
            token_budget=token_budget,
            on_result=on_result,
        )
        self.stats = engine.stats
        results = engine.run(jobs)
        try:
            async for result in results:
                yield result
        finally:
            await results.aclose()

    async def _prepare_until(self, deadline: float | None, reasoning: ReasoningMode | None = None) -> bool:
        """Prepare the model and the ranker, and return whether that is done before `deadline`.

        After the deadline, the preparation continues, because other callers may wait for it.
        """
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

    def _engine(self, **arguments: Any) -> Engine:
        return Engine(self.ranker, journal=self.journal, concurrency=self.options.concurrency or 1, **arguments)
