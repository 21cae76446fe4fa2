"""A time limit that also interrupts long operations, such as loading weights or a training step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

_POLL_SECONDS = 0.2
"""Seconds until the next attempt if the work cannot be interrupted at the moment."""


class TimeLimitReached(BaseException):
    """The time limit has passed, and the work may be interrupted.

    Like `KeyboardInterrupt`, it is not an `Exception`, so no library catches it with `except Exception`.
    """


@dataclass(slots=True)
class Interruption:
    """Whether the work may be interrupted at the moment. For example, an optimizer step must not be interrupted."""

    allowed: bool = True


@contextmanager
def interrupt_after(seconds: float | None) -> Iterator[Interruption]:
    """Raise `TimeLimitReached` in the block once `seconds` have passed and the work may be interrupted.

    Python raises it only between two of its bytecode instructions. It is never raised outside of the main thread, or if
    the operating system has no timer signals.

    Args:
        seconds: The number of seconds left; None for no limit.

    Yields:
        The `Interruption`. The block sets its `allowed` to state whether it may be interrupted (at first, it may).
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
