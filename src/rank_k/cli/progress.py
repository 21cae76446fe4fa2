"""Show progress on standard error: a progress bar in a terminal, or else a line every 30 seconds."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from rich.console import RenderableType


LOG_SECONDS = 30.0
"""Seconds between two lines if standard error is not a terminal."""
_NOTICE_SECONDS = 1.0
"""Seconds between two polls if standard error is not a terminal."""
_REFRESHES_PER_SECOND = 2


class UpdateProgress(Protocol):
    """Updates a progress bar."""

    def __call__(self, completed: float, total: float | None = None, details: str = "") -> None:
        """Set the completed amount and, unless it is None, the total amount."""


class ProgressState(NamedTuple):
    """The progress of some work. `notice` is a line that is shown once, or "" if there is none yet."""

    completed: float
    total: float
    details: str
    notice: str = ""


@contextmanager
def progress_bar(
    title: str, total: float | None = None, *, quiet: bool = False, poll: Callable[[], ProgressState] | None = None
) -> Iterator[UpdateProgress]:
    """Show progress until the context is left, and yield the function that updates it.

    If standard error is not a terminal, progress is only shown if `poll` is given.

    Args:
        title: A description of the work.
        total: The total amount of work, if it is known at the start.
        quiet: Whether to show nothing.
        poll: Returns the state of the work. It is called before each refresh, in a separate thread.
    """
    if quiet or not sys.stderr.isatty():
        with _log_lines(title, poll) if poll is not None and not quiet else nullcontext():
            yield lambda completed, total=None, details="": None
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.text import Text

    time_columns = [TimeRemainingColumn()] if poll is None else []  # `details` of `poll` contains the remaining time
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(20),
        TaskProgressColumn(),
        *time_columns,
        TextColumn("{task.fields[details]}", markup=False),
        auto_refresh=False,
    )
    task = bar.add_task(title, total=total, details="")

    def update(completed: float, total: float | None = None, details: str = "") -> None:
        bar.update(task, completed=completed, total=total, details=details)

    def render() -> RenderableType:
        if poll is None:
            return bar.get_renderable()
        state = poll()
        update(state.completed, state.total, state.details)
        notices = [Text(state.notice)] if state.notice else []
        return Group(bar.get_renderable(), *notices)

    with Live(
        console=Console(stderr=True),
        get_renderable=render,
        refresh_per_second=_REFRESHES_PER_SECOND,
        transient=True,
        redirect_stdout=False,
    ):
        yield update


@contextmanager
def _log_lines(title: str, poll: Callable[[], ProgressState]) -> Iterator[None]:
    """Print a line every `LOG_SECONDS`, and the notice once, in a thread until the context is left."""
    stop = threading.Event()

    def print_lines() -> None:
        last_line, notice = time.monotonic(), ""
        while not stop.wait(min(_NOTICE_SECONDS, LOG_SECONDS)):
            state = poll()
            if state.notice and not notice:
                notice = state.notice
                print(notice, file=sys.stderr, flush=True)
            if time.monotonic() - last_line >= LOG_SECONDS:
                last_line = time.monotonic()
                print(f"{title}{state.details}", file=sys.stderr, flush=True)

    thread = threading.Thread(target=print_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
