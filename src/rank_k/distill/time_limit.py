"""A time limit that also holds where Python does not come back for minutes: while weights load, and inside a step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_POLL_SECONDS = 0.2
"""Seconds until the next attempt, where the work cannot be interrupted at present."""


class TimeLimitReached(BaseException):
    """The time limit has passed while the work could be interrupted.

    Like `KeyboardInterrupt`, it is not an `Exception`, so that no library that is interrupted handles it.
    """


@dataclass(slots=True)
class Interruption:
    """Whether the work may be interrupted at present. An optimizer's step, for example, must be complete or absent."""

    allowed: bool = True


@contextmanager
def interrupt_after(seconds: float | None) -> Iterator[Interruption]:
    """Raise `TimeLimitReached` in the block once `seconds` have passed and the work may be interrupted.

    It is raised between two operations of Python. Where the operating system has no timer signals, and outside of the
    main thread, it is never raised.

    Args:
        seconds: The seconds left; None for no limit.

    Yields:
        The `Interruption`, in which the block states whether the work may be interrupted (at first, it may).
    """
    interruption = Interruption()
    is_main_thread = threading.current_thread() is threading.main_thread()
    if seconds is None or not is_main_thread or not hasattr(signal, "setitimer"):
        yield interruption
        return

    def interrupt(signal_number: int, frame: Any) -> None:
        if interruption.allowed:
            interruption.allowed = False
            raise TimeLimitReached
        signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS)

    previous_handler = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield interruption
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous_handler)
