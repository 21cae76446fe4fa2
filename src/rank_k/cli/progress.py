"""One line on stderr about long work: done/total, rate, time left, tokens. On a thread of its own."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rank_k.engine import RunStats


class Progress:
    """Shows `tally()` of `total` queries until left, after `title`: twice a second on a terminal, else every 30
    seconds."""

    def __init__(self, get_stats: Callable[[], RunStats], total: int, *, quiet: bool = False, title: str = "") -> None:
        self._title = title
        self._get_stats = get_stats
        self._total = total
        self._terminal = sys.stderr.isatty()
        self._quiet = quiet
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._show, daemon=True)
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        if not self._quiet:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if not self._quiet:
            self._thread.join()
            if self._terminal:
                print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _show(self) -> None:
        while not self._stop.wait(0.5 if self._terminal else 30):
            line = self._line()
            print(f"\r\x1b[K{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
            sys.stderr.flush()

    def _line(self) -> str:
        get_stats = self._get_stats()
        seconds = time.monotonic() - self._started
        parts = [f"{self._title}{get_stats.queries}/{self._total} queries", f"{get_stats.windows} windows"]
        if get_stats.new_calls:
            parts.append(f"{get_stats.new_calls / seconds:.1f} calls/s")
            parts.append(f"{format_count(get_stats.usage.completion_tokens)} tokens out")
        if get_stats.queries:
            parts.append(f"{format_seconds((self._total - get_stats.queries) * seconds / get_stats.queries)} left")
        if get_stats.unranked_windows:
            parts.append(f"{get_stats.unranked_windows} windows unranked")
        return ", ".join(parts)


def show_progress(quiet: bool, title: str = "") -> Callable[[Callable[[], RunStats], int], Progress]:
    """Return what shows the progress of a run (`run_job.ShowProgress`)."""
    return lambda get_stats, total: Progress(get_stats, total, quiet=quiet, title=title)


def format_seconds(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3 min 05 s, 2 h 10 min."""
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60:02d} s"
    return f"{rounded // 3600} h {rounded % 3600 // 60:02d} min"


def format_count(number: int) -> str:
    """1,234,567 -> 1.2M"""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.1f}{letter}"
    return str(number)
