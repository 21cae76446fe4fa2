"""Progress of long work on stderr: what has been done and the time left, as a bar in terminals, else as log lines."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Protocol

from rank_k.engine import RunStats

if TYPE_CHECKING:
    from rich.console import RenderableType


LOG_SECONDS = 30.0
"""Seconds between two lines where stderr is not a terminal, but a log."""
_REFRESHES_PER_SECOND = 2
_SPEED_PERIOD = 600
"""Seconds of work whose speed the time left is estimated from. A query can take minutes."""


class UpdateProgress(Protocol):
    def __call__(self, completed: float, total: float | None = None, details: str = "") -> None:
        """Set how much is completed, and, if it is not None, how much there is in total."""


@contextmanager
def progress_bar(
    title: str, total: float | None = None, *, quiet: bool = False, poll: Callable[[], tuple[float, str]] | None = None
) -> Iterator[UpdateProgress]:
    """Show a progress bar until the context is left, and yield the function that updates it.

    If stderr is not a terminal, a line every `LOG_SECONDS` says what `poll` returns.

    Args:
        title: What is being done.
        total: How much there is to do, if it is known at the start.
        quiet: Show nothing.
        poll: Returns how much is completed, and details. It is called before each refresh, on another thread.
    """
    if quiet or not sys.stderr.isatty():
        with _log_lines(title, total, poll) if poll is not None and not quiet else nullcontext():
            yield lambda completed, total=None, details="": None
        return
    from rich.console import Console
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[details]}", markup=False),
    )
    bar = Progress(*columns, auto_refresh=False, speed_estimate_period=_SPEED_PERIOD)
    task = bar.add_task(title, total=total, details="")

    def update(completed: float, total: float | None = None, details: str = "") -> None:
        bar.update(task, completed=completed, total=total, details=details)

    def render() -> RenderableType:
        if poll is not None:
            completed, details = poll()
            update(completed, details=details)
        return bar.get_renderable()

    with Live(
        console=Console(stderr=True),
        get_renderable=render,
        refresh_per_second=_REFRESHES_PER_SECOND,
        transient=True,
        redirect_stdout=False,
    ):
        yield update


@contextmanager
def _log_lines(title: str, total: float | None, poll: Callable[[], tuple[float, str]]) -> Iterator[None]:
    """Print a line every `LOG_SECONDS`, on a thread, until the context is left."""
    stop, started = threading.Event(), time.monotonic()

    def print_lines() -> None:
        while not stop.wait(LOG_SECONDS):
            completed, details = poll()
            left = ""
            if total is not None and completed:
                left = f", {format_seconds((total - completed) * (time.monotonic() - started) / completed)} left"
            print(f"{title}{details}{left}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def show_progress(
    quiet: bool, title: str = ""
) -> Callable[[Callable[[], RunStats], int], AbstractContextManager[object]]:
    """Return the function that shows how many queries of a run are reranked.

    It is called with a function that returns the counts so far, and with the number of queries. The progress is shown
    while the context that it returns is entered.
    """
    return partial(_query_progress, quiet=quiet, title=title)


def _query_progress(
    get_stats: Callable[[], RunStats], total: int, *, quiet: bool, title: str
) -> AbstractContextManager[object]:
    started = time.monotonic()

    def poll() -> tuple[float, str]:
        stats = get_stats()
        parts = [f"{stats.queries}/{total} queries", f"{stats.windows} windows"]
        if stats.new_calls:
            parts.append(f"{stats.new_calls / (time.monotonic() - started):.1f} calls/s")
            parts.append(f"{format_count(stats.usage.completion_tokens)} tokens out")
        if stats.unranked_windows:
            parts.append(f"{stats.unranked_windows} windows unranked")
        return stats.queries, ", ".join(parts)

    return progress_bar(title, total, quiet=quiet, poll=poll)


def format_seconds(seconds: float) -> str:
    """Return seconds in the units that people use: 42 s, 3 min 05 s, 2 h 10 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def format_count(number: int) -> str:
    """Return a number with at most one decimal and its unit: 1.2M for 1,234,567."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
