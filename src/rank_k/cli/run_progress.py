"""The progress of a run in calls to the model, and the estimated time left.

The number of calls of a query is taken from the first round of its strategy, before the first call is made. Times are
estimated from the finished calls of the same run. The time of a call is assumed to be proportional to the number of
passages in its prompt, because comparing 20 passages takes longer than scoring a single one.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager

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
"""The number of new calls that must finish before times are estimated."""


class RunProgress:
    """Counts the queries and windows of a run. Implements `run_job.RunObserver`.

    Args:
        reranker: The reranker of the run.
        query_count: The number of queries of the run.
    """

    def __init__(self, reranker: Reranker, query_count: int) -> None:
        self.query_count = query_count
        self._reranker = reranker
        self._started = time.monotonic()
        self._stored_before = reranker.journal.stored_calls
        self._planned = Counter(queries=0)  # queries that have started, and the planned calls and passages of them
        self._ranked_passages = 0
        self._new_passages = 0.0  # of windows whose calls were sent to the model

    def watch(self, run: Iterable[tuple[str, Sequence[Candidate]]]) -> Iterator[tuple[str, Sequence[Candidate]]]:
        """Yield the items of `run` unchanged, and count each query as started."""
        for query_id, candidates in run:
            calls, passages = self._plan(candidates)
            _, shallow_passages = self._plan(candidates[:SHALLOW_DEPTH])
            self._planned.update(queries=1, calls=calls, passages=passages, shallow_passages=shallow_passages)
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
        """The number of finished calls to the model, including the calls of windows that are not ranked yet."""
        return self._reranker.journal.stored_calls - self._stored_before

    @property
    def calls(self) -> int:
        """The number of finished calls, including the calls that were found in the journal."""
        return self.stats.calls + self._unreported_calls

    @property
    def expected_calls(self) -> int:
        """The estimated number of calls of the whole run, based on the queries that have started."""
        return max(round(self._per_query("calls") * self.query_count), self.calls)

    @property
    def seconds_left(self) -> float | None:
        """The estimated time until the run is finished; None before the first ten new calls."""
        expected_passages = self._per_query("passages") * self.query_count
        return self._seconds_for(max(expected_passages - self._ranked_passages - self._unreported_calls, 0))

    def seconds_per_query(self, *, shallow: bool = False) -> float | None:
        """Return the estimated time of a query; None before ten new calls. `shallow`: at depth `SHALLOW_DEPTH`."""
        return self._seconds_for(self._per_query("shallow_passages" if shallow else "passages"))

    @property
    def is_slow(self) -> bool:
        """Whether the embedded model ranks more than `SHALLOW_DEPTH` candidates per query."""
        is_deep = self._planned["passages"] > self._planned["shallow_passages"]
        return is_deep and isinstance(self._reranker.model, EmbeddedModel)

    @property
    def _unreported_calls(self) -> int:
        """The number of new calls of windows that are not ranked yet. Each counts as one passage (query likelihood)."""
        return max(self.new_calls - self.stats.new_calls, 0)

    def _per_query(self, kind: str) -> float:
        """Return the planned number of calls or passages per query."""
        return self._planned[kind] / max(self._planned["queries"], 1)

    def _seconds_for(self, passages: float) -> float | None:
        """Return the estimated time of calls whose prompts contain `passages` passages in total."""
        new_passages = self._new_passages + self._unreported_calls
        return passages * self.seconds / new_passages if self.new_calls >= _MIN_CALLS and new_passages else None

    def _plan(self, candidates: Sequence[Candidate]) -> tuple[int, int]:
        """Return the number of calls of a query, and of passages in their prompts, as planned in the first round."""
        options = self._reranker.options
        first_round = next(run_validated(self._reranker.strategy, candidates[: options.depth], 0), None)
        if first_round is None:
            return 0, 0
        sizes = {window: len(window.doc_ids) for window in first_round.windows}
        scored = [window for window in sizes if "likelihood" in (window.method, options.method)]
        scored_passages = sum(sizes[window] for window in scored)
        compared_size = max((sizes[window] for window in sizes if window not in scored), default=options.window)
        compared_calls = (first_round.remaining_windows - len(scored)) * options.samples
        return scored_passages + compared_calls, scored_passages + compared_calls * compared_size


def show_progress(
    title: str = "",
    noun: str = "query",
    describe_notice: Callable[[RunProgress], str] | None = None,
) -> Callable[[Reranker, int], AbstractContextManager[RunProgress]]:
    """Return a function that shows the progress of a run (see `run_job.ShowProgress`).

    Args:
        title: A text before the counts.
        noun: The noun for the items that are ranked, in the singular.
        describe_notice: Returns a line that is shown once, or "" if it cannot be computed yet (default:
            `describe_depth`).
    """
    describe_notice = describe_notice or describe_depth

    @contextmanager
    def show(reranker: Reranker, total: int) -> Iterator[RunProgress]:
        run_progress = RunProgress(reranker, total)
        with progress_bar(title, poll=lambda: describe_run(run_progress, noun, describe_notice(run_progress))):
            yield run_progress

    return show


def describe_run(progress: RunProgress, noun: str = "query", notice: str = "") -> ProgressState:
    """Return the state of a run. `details` contains its counts, its speed and the time left as text.

    Args:
        progress: The progress of the run.
        noun: The noun for the items that are ranked, in the singular.
        notice: A line that is shown once (default: none).
    """
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
    """Return a line with the time per query of the embedded model at this depth and at `SHALLOW_DEPTH`.

    The line is "" if the model is not the embedded model, the depth is not larger, or the times are not known yet.
    """
    seconds, shallow_seconds = progress.seconds_per_query(), progress.seconds_per_query(shallow=True)
    if not progress.is_slow or seconds is None or shallow_seconds is None:
        return ""
    return (
        f"the embedded model takes about {format_seconds(seconds)} per query at this depth;"
        f" --depth {SHALLOW_DEPTH} would take about {format_seconds(shallow_seconds)}"
    )
