"""Run the strategies of many queries concurrently.

Scheduling: the next window to be ranked is from the query with the most remaining windows, because the longest chain of
rounds determines when the run ends. If several queries have equally many, the earliest one comes first. At most
`OPEN_QUERIES_PER_SLOT` x `concurrency` queries are open at the same time. Finished rankings are kept in the journal
until they can be returned in input order, so that memory does not grow with the number of queries. If a request waits
in a batch file, its query ends after the current round with its best ranking so far. All requests of the round are then
in the file.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from rank_k.errors import ModelError, PromptFiltered, ResponsePending, RetriesExhausted
from rank_k.journal import Journal, WindowRecord
from rank_k.option_values import ReasoningMode
from rank_k.strategies.base import Strategy, StrategyGenerator, query_seed, run_validated
from rank_k.types import (
    CallTotals,
    Candidate,
    Passage,
    Query,
    Ranking,
    Round,
    StreamChunk,
    Window,
    WindowResult,
)
from rank_k.window.base import WindowRanker, WindowReport
from rank_k.window.prompt_builder import PreparedQuery

OPEN_QUERIES_PER_SLOT = 4


@dataclass(frozen=True, slots=True)
class Job:
    """A query to be reranked. `candidates` are ranked; the ids in `tail` follow them in the given order.

    `journal_name`: the query's id in the journal.
    """

    query: Query
    candidates: Sequence[Candidate]
    passages: Mapping[str, Passage]
    tail: tuple[str, ...]
    journal_name: str


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A query's ranking. If `finished` is False, time or tokens ran out, and it is the best ranking so far."""

    query_id: str
    ranking: Ranking
    finished: bool = True


@dataclass(slots=True)
class RunStats(CallTotals):
    """Counts of a run so far, with the totals of its calls."""

    queries: int = 0
    windows: int = 0
    rounds: int = 0
    unranked_windows: int = 0
    """Windows left in input order, because none of their samples has a usable answer."""
    unranked: list[tuple[str, int]] = field(default_factory=list)
    """(query id, round) of each of these windows, for at most `MAX_LISTED` windows."""
    unfinished: list[str] = field(default_factory=list)

    MAX_LISTED = 1000

    def count_window(self, query_id: str, round_number: int, report: WindowReport) -> None:
        """Count a window. The totals of its calls are added by `+=`."""
        self.windows += 1
        if any(ranking.is_valid for ranking in report.result.rankings):
            return
        self.unranked_windows += 1
        if len(self.unranked) < self.MAX_LISTED:
            self.unranked.append((query_id, round_number))


@dataclass(slots=True)
class _OpenQuery:
    """A query whose strategy is running."""

    position: int
    job: Job
    generator: StrategyGenerator
    round: Round
    round_number: int = 0
    results: dict[int, WindowResult] = field(default_factory=dict)
    is_pending: bool = False  # a window of the round waits for a response in a batch file
    prepared: asyncio.Task[PreparedQuery] | None = None


def deadline_after(seconds: float | None) -> float | None:
    """Return the `time.monotonic()` that is `seconds` from now; None for no deadline."""
    return None if seconds is None else time.monotonic() + seconds


class Engine:
    """Runs the strategy of each job and ranks its windows with `ranker`, `concurrency` windows at a time.

    Args:
        ranker: ranks a window.
        strategy: chooses the windows.
        journal: stores queries, windows and rankings as the run `run`.
        concurrency: number of windows in flight.
        first_position: position of the first job among the queries of the journal's run.
        deadline: `time.monotonic()` at which the work stops; every query then gets its best ranking so far.
        token_budget: prompt and completion tokens after which no further window starts. Windows in flight are
            finished, and every query gets its best ranking so far. The tokens of cache hits count too.
        reasoning: the reasoning mode (default: that of the ranker's settings).
        on_window: called with (query id, round number, window number, window) before a window is ranked.
        on_chunk: called with (query id, round number, window number, chunk) for each chunk of a response.
        on_result: called with (query id, round number, window number, report) when a window is ranked.
        on_ranking: called with (query id, round number, ranking) after each round, with the best ranking so far.

    Rounds and windows are numbered from 0.
    """

    def __init__(
        self,
        ranker: WindowRanker,
        strategy: Strategy,
        journal: Journal,
        *,
        concurrency: int = 16,
        run: str = "",
        first_position: int = 0,
        deadline: float | None = None,
        token_budget: int | None = None,
        reasoning: ReasoningMode | None = None,
        on_window: Callable[[str, int, int, Window], None] | None = None,
        on_result: Callable[[str, int, int, WindowReport], None] | None = None,
        on_chunk: Callable[[str, int, int, StreamChunk], None] | None = None,
        on_ranking: Callable[[str, int, Ranking], None] | None = None,
    ) -> None:
        self.stats = RunStats()
        self._ranker = ranker
        self._strategy = strategy
        self._journal = journal
        self._concurrency = concurrency
        self._run = run
        self._next_position = first_position  # of the next result
        self._deadline = deadline
        self._token_budget = token_budget
        self._reasoning = reasoning
        self._on_window = on_window
        self._on_result = on_result
        self._on_chunk = on_chunk
        self._on_ranking = on_ranking
        self._ready: list[tuple[int, int, int, _OpenQuery]] = []
        self._open: dict[int, _OpenQuery] = {}
        self._finished: dict[int, tuple[str, bool]] = {}  # by position; the ranking is in the journal
        self._tasks: dict[asyncio.Task[WindowReport], tuple[_OpenQuery, int]] = {}
        self._completed: asyncio.Queue[asyncio.Task[WindowReport]] = asyncio.Queue()
        self._consecutive_failures = 0  # windows in a row that got no response
        self._stopped = False

    async def run(self, jobs: Iterable[Job]) -> AsyncGenerator[QueryResult, None]:
        """Yield the results in the order of `jobs`. Raises `ModelError` if the model stops responding."""
        numbered_jobs = enumerate(jobs, self._next_position)
        exhausted = False
        try:
            while self._open or not exhausted:
                if not exhausted and len(self._open) < OPEN_QUERIES_PER_SLOT * self._concurrency:
                    exhausted = not self._open_next_query(numbered_jobs)
                else:
                    self._start_windows()
                    if not self._tasks or not await self._process_next_result():
                        await self._stop()  # tokens or time have run out
                while self._next_position in self._finished:
                    yield self._pop_result()
        finally:
            await self._cancel()

    # --- queries ---

    def _open_next_query(self, numbered_jobs: Iterable[tuple[int, Job]]) -> bool:
        """Open the next query, or finish it at once if it needs no windows or the run has been stopped.

        Returns:
            False if there are no more queries.
        """
        for position, job in numbered_jobs:
            self._journal.store_query(self._run, position, job.journal_name, job.query.text)
            if self._stopped:
                self._finish_query(position, job, Ranking.untied(c.doc_id for c in job.candidates), False)
                return True
            generator = run_validated(self._strategy, job.candidates, query_seed(job.query.query_id))
            try:
                first_round = next(generator)
            except StopIteration as stop:
                self._finish_query(position, job, stop.value, True)
            else:
                self._open[position] = _OpenQuery(position, job, generator, first_round)
                self._start_round(self._open[position])
            return True
        return False

    def _start_round(self, open_query: _OpenQuery) -> None:
        """Store the ranking before the round and queue the windows of the round."""
        self._journal.store_round(self._run, open_query.position, open_query.round_number, open_query.round.ranking)
        for window_number in range(len(open_query.round.windows)):
            heapq.heappush(
                self._ready, (-open_query.round.remaining_windows, open_query.position, window_number, open_query)
            )

    def _add_result(self, open_query: _OpenQuery, window_number: int, result: WindowResult) -> None:
        """Store a window's result. If it completes the round, start the next round or finish the query."""
        open_query.results[window_number] = result
        if len(open_query.results) < len(open_query.round.windows):
            return
        if open_query.is_pending:
            open_query.generator.close()
            del self._open[open_query.position]
            self._finish_query(open_query.position, open_query.job, open_query.round.ranking, False)
            return
        results = [open_query.results[i] for i in range(len(open_query.round.windows))]
        open_query.results = {}
        self.stats.rounds += 1
        try:
            open_query.round = open_query.generator.send(results)
        except StopIteration as stop:
            del self._open[open_query.position]
            self._finish_query(open_query.position, open_query.job, stop.value, True)
        else:
            if self._on_ranking is not None:
                self._on_ranking(open_query.job.query.query_id, open_query.round_number, open_query.round.ranking)
            open_query.round_number += 1
            self._start_round(open_query)

    def _finish_query(self, position: int, job: Job, ranking: Ranking, finished: bool) -> None:
        full_ranking = Ranking(ranking.doc_ids + job.tail, ranking.tied + (False,) * len(job.tail), ranking.probability)
        self._journal.store_ranking(self._run, position, job.journal_name, full_ranking)
        self._finished[position] = (job.query.query_id, finished)
        self.stats.queries += 1
        if not finished:
            self.stats.unfinished.append(job.query.query_id)

    def _pop_result(self) -> QueryResult:
        """Return the next result in the order of the jobs."""
        query_id, finished = self._finished.pop(self._next_position)
        ranking = self._journal.find_ranking(self._run, self._next_position)
        assert ranking is not None, "a finished ranking is in the journal"
        self._next_position += 1
        return QueryResult(query_id, ranking, finished)

    # --- windows ---

    def _start_windows(self) -> None:
        while self._ready and len(self._tasks) < self._concurrency and not self._is_over_budget:
            _, _, window_number, open_query = heapq.heappop(self._ready)
            task = asyncio.create_task(self._rank_window(open_query, window_number))
            self._tasks[task] = open_query, window_number
            task.add_done_callback(self._completed.put_nowait)

    @property
    def _is_over_budget(self) -> bool:
        """Whether the token budget is used up."""
        usage = self.stats.usage
        return self._token_budget is not None and usage.prompt_tokens + usage.completion_tokens >= self._token_budget

    async def _rank_window(self, open_query: _OpenQuery, window_number: int) -> WindowReport:
        window = open_query.round.windows[window_number]
        if open_query.prepared is None:
            open_query.prepared = asyncio.create_task(
                self._ranker.prepare_query(open_query.job.query, open_query.job.passages)
            )
            open_query.prepared.add_done_callback(self._count_repairs)
        prepared_query = await open_query.prepared
        query_id = open_query.job.query.query_id
        if self._on_window is not None:
            self._on_window(query_id, open_query.round_number, window_number, window)
        try:
            report = await self._ranker.rank(
                prepared_query,
                window,
                reasoning=self._reasoning,
                on_chunk=self._on_chunk and partial(self._on_chunk, query_id, open_query.round_number, window_number),
            )
        except ResponsePending as error:
            return _unranked_report(window, "pending", error)
        except PromptFiltered as error:
            return _unranked_report(window, "content_filtered", error)
        except RetriesExhausted as error:
            self._consecutive_failures += 1
            if self._consecutive_failures >= max(3, self._concurrency):
                raise  # the server is no longer available
            return _unranked_report(window, "retries_exhausted", error)
        self._consecutive_failures = 0
        return report

    def _count_repairs(self, task: asyncio.Task[PreparedQuery]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.stats.repairs.update(task.result().repairs)

    async def _process_next_result(self) -> bool:
        """Wait for a window and process its result; False if the deadline came first."""
        try:
            async with asyncio.timeout_at(self._deadline):
                task = await self._completed.get()
        except TimeoutError:
            return False
        open_query, window_number = self._tasks.pop(task)
        report = task.result()
        if isinstance(report.error, ResponsePending):
            open_query.is_pending = True
            self._add_result(open_query, window_number, report.result)
            return True
        self.stats += report
        self.stats.count_window(open_query.job.query.query_id, open_query.round_number, report)
        record = WindowRecord(
            open_query.job.journal_name,
            open_query.round_number,
            window_number,
            report.result.window,
            tuple(report.call_keys),
            report.result.rankings,
            report.repairs,
        )
        self._journal.store_window(self._run, record)
        if self._on_result is not None:
            self._on_result(open_query.job.query.query_id, open_query.round_number, window_number, report)
        self._add_result(open_query, window_number, report.result)
        return True

    async def _stop(self) -> None:
        """Cancel the windows in flight. Open queries get their best ranking so far, later queries their input order."""
        await self._cancel()
        self._stopped = True
        self._ready.clear()
        for position, open_query in sorted(self._open.items()):
            self._finish_query(position, open_query.job, open_query.round.ranking, False)
        self._open.clear()

    async def _cancel(self) -> None:
        tasks: list[asyncio.Task[WindowReport] | asyncio.Task[PreparedQuery]] = [*self._tasks]
        tasks += [open_query.prepared for open_query in self._open.values() if open_query.prepared is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        for open_query in self._open.values():
            open_query.generator.close()


def _unranked_report(window: Window, repair: str, error: ModelError) -> WindowReport:
    """Return the report of a window that keeps its input order because of `error`, which is counted as `repair`."""
    return replace(WindowReport.unranked(window), traces=("",), repairs=Counter({repair: 1}), error=error)
