"""The progress of a run in calls to the model, and the time left.

The calls of a query are planned by its strategy before the first one is made. Times are estimated from the calls of
the same run. They are assumed to be proportional to the passages in the prompts, because a call that compares 20
passages takes longer than one that scores a single passage.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

from rank_k.cli.progress import ProgressState, progress_bar
from rank_k.cli.render.words import count_noun, format_count, format_seconds
from rank_k.engine import RunStats
from rank_k.models.embedded import EmbeddedModel
from rank_k.reranker import Reranker
from rank_k.strategies.base import run_validated
from rank_k.types import Candidate
from rank_k.window.base import WindowReport

SHALLOW_DEPTH = 20
"""The depth that is suggested for the embedded model."""
_MIN_CALLS = 10
"""New calls before times are estimated."""


class _Work(NamedTuple):
    """Calls, and the number of passages in all of their prompts."""

    calls: int
    passages: int


class RunProgress:
    """Counts the queries and windows of a run; it is a `run_job.RunObserver`.

    Args:
        reranker: The reranker of the run.
        query_count: The number of queries of the run.
    """

    def __init__(self, reranker: Reranker, query_count: int) -> None:
        self.query_count = query_count
        self._reranker = reranker
        self._started = time.monotonic()
        self._stored_before = reranker.journal.stored_calls
        self._started_queries = 0
        self._planned = _Work(0, 0)  # of the started queries
        self._planned_shallow = _Work(0, 0)
        self._ranked_passages = 0
        self._new_passages = 0.0  # of windows whose calls were sent to the model

    def watch(self, run: Iterable[tuple[str, Sequence[Candidate]]]) -> Iterator[tuple[str, Sequence[Candidate]]]:
        """Yield the queries of `run`, and count each as started."""
        for query_id, candidates in run:
            self._started_queries += 1
            self._planned = _add(self._planned, self._plan(candidates))
            self._planned_shallow = _add(self._planned_shallow, self._plan(candidates[:SHALLOW_DEPTH]))
            yield query_id, candidates

    def add_result(self, query_id: str, round_number: int, window_number: int, report: WindowReport) -> None:
        """Count a ranked window."""
        passages = len(report.result.window.doc_ids)
        self._ranked_passages += passages
        self._new_passages += passages * report.new_calls / max(report.calls, 1)

    @property
    def stats(self) -> RunStats:
        return self._reranker.stats

    @property
    def seconds(self) -> float:
        """Seconds since the start of the run."""
        return time.monotonic() - self._started

    @property
    def new_calls(self) -> int:
        """Finished calls that were sent to the model, including those of windows that are not ranked yet."""
        return self._reranker.journal.stored_calls - self._stored_before

    @property
    def calls(self) -> int:
        """Finished calls, including those found in the journal."""
        return self.stats.calls + self._unreported_calls

    @property
    def expected_calls(self) -> int:
        """The number of calls of the whole run, which is estimated from the queries that have started."""
        return max(round(self._planned.calls * self._scale), self.calls)

    @property
    def seconds_left(self) -> float | None:
        """The estimated time until the run is finished; None before the first ten new calls."""
        expected_passages = self._planned.passages * self._scale
        done = self._ranked_passages + self._unreported_calls
        return self._seconds_for(max(expected_passages - done, 0))

    @property
    def shallow_depth(self) -> int | None:
        """A smaller depth to suggest, if the embedded model ranks many candidates; else None."""
        is_slow = isinstance(self._reranker.model, EmbeddedModel) and self._planned.calls > self._planned_shallow.calls
        return SHALLOW_DEPTH if is_slow else None

    @property
    def seconds_per_query(self) -> float | None:
        """The estimated time of a query; None before the first ten new calls."""
        return self._seconds_for(self._planned.passages / max(self._started_queries, 1))

    @property
    def seconds_per_shallow_query(self) -> float | None:
        """The estimated time of a query at `SHALLOW_DEPTH`; None before the first ten new calls."""
        return self._seconds_for(self._planned_shallow.passages / max(self._started_queries, 1))

    @property
    def _scale(self) -> float:
        """How many times as many queries the run has as have started."""
        return self.query_count / max(self._started_queries, 1)

    @property
    def _unreported_calls(self) -> int:
        """New calls of windows that are not ranked yet. A call of query likelihood has one passage."""
        return max(self.new_calls - self.stats.new_calls, 0)

    def _seconds_for(self, passages: float) -> float | None:
        """Return the estimated time of calls that have this number of passages in their prompts."""
        new_passages = self._new_passages + self._unreported_calls
        if self.new_calls < _MIN_CALLS or not new_passages:
            return None
        return passages * self.seconds / new_passages

    def _plan(self, candidates: Sequence[Candidate]) -> _Work:
        """Return the work of a query, as its strategy plans it before the first answer."""
        options = self._reranker.options
        first_round = next(run_validated(self._reranker.strategy, candidates[: options.depth], 0), None)
        if first_round is None:
            return _Work(0, 0)
        scored: list[int] = []
        compared: list[int] = []
        for window in first_round.windows:
            is_scored = "likelihood" in (window.method, options.method)
            (scored if is_scored else compared).append(len(window.doc_ids))
        compared_windows = (first_round.remaining_windows - len(scored)) * options.samples
        window_size = max(compared, default=min(options.window, len(candidates)))
        return _Work(sum(scored) + compared_windows, sum(scored) + compared_windows * window_size)


def _add(first: _Work, second: _Work) -> _Work:
    return _Work(first.calls + second.calls, first.passages + second.passages)


def show_progress(
    quiet: bool = False,
    title: str = "",
    noun: str = "query",
    describe_notice: Callable[[RunProgress], str] | None = None,
) -> Callable[[Reranker, int], AbstractContextManager[RunProgress]]:
    """Return the function that shows the progress of a run (see `run_job.ShowProgress`).

    Args:
        quiet: Show nothing.
        title: A text before the counts.
        noun: What is ranked.
        describe_notice: Returns the line that is shown once, or "" while it is not known (default: how long the
            embedded model takes at this depth and at a smaller one).
    """
    describe_notice = describe_notice or describe_depth

    @contextmanager
    def show(reranker: Reranker, total: int) -> Iterator[RunProgress]:
        run_progress = RunProgress(reranker, total)
        with progress_bar(
            title, quiet=quiet, poll=lambda: describe_run(run_progress, noun, describe_notice(run_progress))
        ):
            yield run_progress

    return show


def describe_run(progress: RunProgress, noun: str = "query", notice: str = "") -> ProgressState:
    """Return the state of a run, with its counts, its speed and the time left as text."""
    stats, calls, expected_calls = progress.stats, progress.calls, progress.expected_calls
    parts = [
        f"{stats.queries}/{count_noun(progress.query_count, noun)}",
        f"{calls:,}/{count_noun(expected_calls, 'call')}",
    ]
    if progress.new_calls:
        parts.append(f"{progress.new_calls / progress.seconds:.1f} calls/s")
        parts.append(f"{format_count(stats.usage.completion_tokens)} tokens out")
    if stats.unranked_windows:
        parts.append(f"{count_noun(stats.unranked_windows, 'window')} unranked")
    if (seconds_left := progress.seconds_left) is not None:
        parts.append(f"about {format_seconds(seconds_left)} left")
    return ProgressState(calls, expected_calls, ", ".join(parts), notice)


def describe_depth(progress: RunProgress) -> str:
    """Return how long a query takes on the embedded model, and how long it would take at less depth."""
    if progress.shallow_depth is None or (seconds := progress.seconds_per_query) is None:
        return ""
    shallow_seconds = progress.seconds_per_shallow_query or 0
    return (
        f"the embedded model takes about {format_seconds(seconds)} per query at this depth;"
        f" --depth {progress.shallow_depth} would take about {format_seconds(shallow_seconds)}"
    )
