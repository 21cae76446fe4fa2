"""Many queries' strategies over one pool of slots.

Scheduling: a free slot takes the ready window of the query with most windows left (the longest chain is the
one that everything waits for in the end), the earlier query first among equals. At most `OPEN_PER_SLOT` x
slots queries are open at once. Finished ones wait in the journal for their turn, so that memory does not grow
with the number of queries and the output comes in input order.
"""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from rank_k.errors import ModelError, PromptFiltered, RetriesExhausted
from rank_k.journal import Journal, WindowRecord
from rank_k.strategies.base import Strategy, StrategyGenerator, seed_of, validated
from rank_k.types import (
    Candidate,
    OnChunk,
    Passage,
    Query,
    Ranking,
    Round,
    StreamChunk,
    Usage,
    Window,
    WindowRanking,
    WindowResult,
)
from rank_k.window.listwise import WindowReport
from rank_k.window.prompt_builder import PreparedQuery
from rank_k.window.reasoning import ReasoningMode

OPEN_PER_SLOT = 4


class WindowRanker(Protocol):
    """What the engine asks through: an `ask.Asker`, which compares, or a `likelihood.LikelihoodAsker`."""

    async def prepare(self, reasoning: ReasoningMode | None = None) -> None:
        """Find out, once, what must be known before the first window, or the first that `think` is for."""

    async def check_query(self, query: Query) -> None:
        """Raise `QueryTooLong` if the query leaves no room in the model's context."""

    async def prepare_query(self, query: Query, passages: Mapping[str, Passage]) -> PreparedQuery:
        """Query and passages ready to be shown. Raises `QueryTooLong` if the query leaves no room."""

    async def rank(
        self,
        texts: PreparedQuery,
        window: Window,
        *,
        reasoning: ReasoningMode | None = None,
        on_text: OnChunk | None = None,
    ) -> WindowReport:
        """Ask about one window. Raises `ModelError` when the model cannot be had, never for a bad answer.

        `think`: how to think about it, if at all and if not as usual. `on_text` hears what the model says meanwhile.
        """


@dataclass(frozen=True, slots=True)
class Job:
    """A query to be reranked. `candidates` are compared; `tail` follows them as it is.

    `name`: what the journal calls it, if not by its query's id.
    """

    query: Query
    candidates: Sequence[Candidate]
    passages: Mapping[str, Passage]
    tail: tuple[str, ...] = ()
    name: str = ""

    @property
    def journal_name(self) -> str:
        return self.name or self.query.query_id


@dataclass(frozen=True, slots=True)
class QueryResult:
    """A query's ranking. `finished` is False where time ran out: the ranking is then the best so far."""

    query_id: str
    ranking: Ranking
    finished: bool = True


@dataclass(slots=True)
class RunStats:
    """What a run has come to so far. `calls` counts all, `asked` those that were not in the journal."""

    queries: int = 0
    windows: int = 0
    calls: int = 0
    new_calls: int = 0
    rounds: int = 0
    usage: Usage = field(default_factory=Usage)
    model_seconds: float = 0.0
    saved_tokens: int = 0
    """Tokens not spent since thoughts that went in circles were ended."""
    repairs: Counter[str] = field(default_factory=Counter)
    unranked: list[tuple[str, int]] = field(default_factory=list)
    """(query id, round) of windows left in input order, the first `NAMED` of them."""
    unfinished: list[str] = field(default_factory=list)

    MAX_LISTED = 1000

    def add(self, query_id: str, round_number: int, asked: WindowReport) -> None:
        self.windows += 1
        self.calls += len(asked.calls)
        self.new_calls += asked.new_calls
        self.usage += asked.usage
        self.model_seconds += asked.seconds
        self.saved_tokens += asked.saved_tokens
        self.repairs.update(asked.repairs)
        if not any(order.is_valid for order in asked.result.rankings) and len(self.unranked) < self.MAX_LISTED:
            self.unranked.append((query_id, round_number))

    @property
    def unranked_windows(self) -> int:
        return self.repairs["unranked"] + self.repairs["retries_exhausted"] + self.repairs["content_filtered"]


@dataclass(slots=True)
class _OpenQuery:
    """A query under way."""

    position: int
    job: Job
    generator: StrategyGenerator
    round: Round
    round_number: int = 0
    results: dict[int, WindowResult] = field(default_factory=dict)
    prepared: asyncio.Task[PreparedQuery] | None = None


class Engine:
    """Drives `strategy` for one job after another, asking through `asker` on `slots` at a time.

    `deadline`: a `time.monotonic()` at which the work stops and every query gets its best ranking so far.
    `token_budget`: tokens, in and out, after which no further window is asked; what is under way is finished, and
    every query gets its best ranking so far. Calls found in the journal count as what they cost then.
    `first`: the position in the journal's run of the first job. `think`: how to think, if not as the asker's settings
    say. Hooks, called with the query's id and the round first: `on_window(query_id, round, window number, window)`
    hears of every window before it is asked about, `on_text(query_id, round, window number, piece)` what the model says
    while it says it, `on_asked(query_id, round, window number, asked)` what became of the window, and
    `on_ranking(query_id, round, ranking)` the best ranking so far whenever a round is over. Windows and rounds count
    from 0.
    """

    def __init__(
        self,
        asker: WindowRanker,
        strategy: Strategy,
        journal: Journal,
        *,
        slots: int = 16,
        run: str = "",
        first: int = 0,
        deadline: float | None = None,
        token_budget: int | None = None,
        reasoning: ReasoningMode | None = None,
        on_window: Callable[[str, int, int, Window], None] | None = None,
        on_asked: Callable[[str, int, int, WindowReport], None] | None = None,
        on_text: Callable[[str, int, int, StreamChunk], None] | None = None,
        on_ranking: Callable[[str, int, Ranking], None] | None = None,
    ) -> None:
        self.stats = RunStats()
        self._ranker = asker
        self._strategy = strategy
        self._journal = journal
        self._slots = slots
        self._run = run
        self._first = first
        self._deadline = deadline
        self._token_budget = token_budget
        self._reasoning = reasoning
        self._on_window = on_window
        self._on_result = on_asked
        self._on_chunk = on_text
        self._on_ranking = on_ranking
        self._ready: list[tuple[int, int, int, _OpenQuery]] = []
        self._open: dict[int, _OpenQuery] = {}
        self._waiting: dict[int, tuple[str, bool]] = {}  # finished, by position; the ranking is in the journal
        self._tasks: set[asyncio.Task[WindowReport]] = set()
        self._done: asyncio.Queue[tuple[asyncio.Task[WindowReport], _OpenQuery, int]] = asyncio.Queue()
        self._failures = 0  # in a row, without an answer between

    async def run(self, jobs: Iterable[Job]) -> AsyncGenerator[QueryResult, None]:
        """The results, in the order of `jobs`. Raises what the model cannot recover from."""
        source = enumerate(jobs, self._first)
        next_out = self._first
        exhausted = False
        try:
            while True:
                while not exhausted and len(self._open) < OPEN_PER_SLOT * self._slots:
                    exhausted = not self._open_next(source)
                self._fill_slots()
                while next_out in self._waiting:
                    yield self._result(next_out)
                    next_out += 1
                if self._tasks and await self._completion():
                    continue
                if self._tasks or self._is_over_budget:  # time or tokens have run out
                    self._stop_now()
                    for position, job in source:
                        self._begin(position, job)
                        self._finish(position, job, Ranking.of(c.doc_id for c in job.candidates), False)
                        while next_out in self._waiting:
                            yield self._result(next_out)
                            next_out += 1
                    exhausted = True
                if exhausted and not self._open:
                    while next_out in self._waiting:
                        yield self._result(next_out)
                        next_out += 1
                    return
        finally:
            await self._cancel()

    # --- queries ---

    def _open_next(self, source: Iterable[tuple[int, Job]]) -> bool:
        """Open one more query; False if there is none."""
        for position, job in source:
            self._begin(position, job)
            steps = validated(self._strategy, job.candidates, seed_of(job.query.query_id))
            try:
                step = next(steps)
            except StopIteration as stop:
                self._finish(position, job, stop.value, True)
            else:
                opened = _OpenQuery(position, job, steps, step)
                self._open[position] = opened
                self._enqueue(opened)
            return True
        return False

    def _begin(self, position: int, job: Job) -> None:
        self._journal.store_query(self._run, position, job.journal_name, job.query.text)

    def _enqueue(self, opened: _OpenQuery) -> None:
        """A round begins: keep how the ranking stands, and have its windows asked about."""
        self._journal.store_round(self._run, opened.position, opened.round_number, opened.round.ranking)
        for number in range(len(opened.round.windows)):
            heapq.heappush(self._ready, (-opened.round.remaining_windows, opened.position, number, opened))

    def _advance(self, opened: _OpenQuery, number: int, outcome: WindowResult) -> None:
        """Take in an outcome; when it was the round's last, go on to the next round or to the end."""
        opened.results[number] = outcome
        if len(opened.results) < len(opened.round.windows):
            return
        outcomes = [opened.results[i] for i in range(len(opened.round.windows))]
        opened.results = {}
        self.stats.rounds += 1
        try:
            opened.round = opened.generator.send(outcomes)
        except StopIteration as stop:
            del self._open[opened.position]
            self._finish(opened.position, opened.job, stop.value, True)
        else:
            if self._on_ranking is not None:
                self._on_ranking(opened.job.query.query_id, opened.round_number, opened.round.ranking)
            opened.round_number += 1
            self._enqueue(opened)

    def _finish(self, position: int, job: Job, ranking: Ranking, finished: bool) -> None:
        whole = Ranking(ranking.doc_ids + job.tail, ranking.tied + (False,) * len(job.tail), ranking.probability)
        self._journal.store_ranking(self._run, position, job.journal_name, whole)
        self._waiting[position] = (job.query.query_id, finished)
        self.stats.queries += 1
        if not finished:
            self.stats.unfinished.append(job.query.query_id)

    def _result(self, position: int) -> QueryResult:
        query_id, finished = self._waiting.pop(position)
        ranking = self._journal.ranking(self._run, position)
        assert ranking is not None, "a finished ranking is in the journal"
        return QueryResult(query_id, ranking, finished)

    # --- windows ---

    def _fill_slots(self) -> None:
        while self._ready and len(self._tasks) < self._slots and not self._is_over_budget:
            _, _, number, opened = heapq.heappop(self._ready)
            task = asyncio.create_task(self._rank_window(opened, number))
            self._tasks.add(task)
            task.add_done_callback(
                lambda done, opened=opened, number=number: self._done.put_nowait((done, opened, number))  # type: ignore[misc]
            )

    @property
    def _is_over_budget(self) -> bool:
        """Whether the token budget is used up."""
        usage = self.stats.usage
        return self._token_budget is not None and usage.prompt_tokens + usage.completion_tokens >= self._token_budget

    async def _rank_window(self, opened: _OpenQuery, number: int) -> WindowReport:
        window = opened.round.windows[number]
        if opened.prepared is None:
            opened.prepared = asyncio.create_task(self._ranker.prepare_query(opened.job.query, opened.job.passages))
            opened.prepared.add_done_callback(self._count_texts)
        texts = await opened.prepared
        if self._on_window is not None:
            self._on_window(opened.job.query.query_id, opened.round_number, number, window)
        try:
            asked = await self._ranker.rank(
                texts, window, reasoning=self._reasoning, on_text=self._listener(opened, number)
            )
        except PromptFiltered as error:
            return _unanswered_window(window, "content_filtered", error)
        except RetriesExhausted as error:
            self._failures += 1
            if self._failures >= max(3, self._slots):
                raise  # nobody has had an answer for long: the server is gone
            return _unanswered_window(window, "retries_exhausted", error)
        self._failures = 0
        return asked

    def _listener(self, opened: _OpenQuery, number: int) -> OnChunk | None:
        if self._on_chunk is None:
            return None
        return partial(self._on_chunk, opened.job.query.query_id, opened.round_number, number)

    def _count_texts(self, task: asyncio.Task[PreparedQuery]) -> None:
        if not task.cancelled() and task.exception() is None:
            self.stats.repairs.update(task.result().repairs)

    async def _completion(self) -> bool:
        """Wait for a window and take it in; False if the deadline came first."""
        if self._deadline is None:
            task, opened, number = await self._done.get()
        else:
            try:
                async with asyncio.timeout(self._deadline - time.monotonic()):
                    task, opened, number = await self._done.get()
            except TimeoutError:
                return False
        self._tasks.discard(task)
        asked = task.result()
        self.stats.add(opened.job.query.query_id, opened.round_number, asked)
        record = WindowRecord(
            opened.job.journal_name,
            opened.round_number,
            number,
            asked.result.window,
            asked.calls,
            asked.result.rankings,
            asked.repairs,
        )
        self._journal.store_window(self._run, record)
        if self._on_result is not None:
            self._on_result(opened.job.query.query_id, opened.round_number, number, asked)
        self._advance(opened, number, asked.result)
        return True

    def _stop_now(self) -> None:
        """The deadline has come: every open query gets its best ranking so far."""
        for task in self._tasks:
            task.cancel()
        self._tasks.clear()
        self._ready.clear()
        for position, opened in sorted(self._open.items()):
            opened.generator.close()
            if opened.prepared is not None:
                opened.prepared.cancel()
            self._finish(position, opened.job, opened.round.ranking, False)
        self._open.clear()

    async def _cancel(self) -> None:
        tasks: list[asyncio.Task[WindowReport] | asyncio.Task[PreparedQuery]] = [*self._tasks]
        tasks += [opened.prepared for opened in self._open.values() if opened.prepared is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()
        for opened in self._open.values():
            opened.generator.close()


def _unanswered_window(window: Window, repair: str, error: ModelError) -> WindowReport:
    """Return `window` in its input order, counted as `repair`, because `error` kept it from being answered."""
    return WindowReport(
        WindowResult(window, (WindowRanking.unranked(window),)), ("",), (), Usage(), Counter({repair: 1}), error=error
    )
