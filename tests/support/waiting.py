"""Waits and measurements that hold on machines of any speed, also while other work keeps the cores busy.

No test asserts an absolute duration. A wait ends when its condition holds, or fails after `PATIENCE`, which only guards
against hanging. What a computation costs is compared with another one measured in the same run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

PATIENCE = 120.0
"""Seconds after which a wait fails. The longest usual wait, for a command to start and stop, takes a few seconds."""

LONG_PATIENCE = 10 * PATIENCE
"""The same for programs that take a minute or two: those that install packages, build an image or train."""

STUCK_SECONDS = 10 * PATIENCE
"""How long something takes that must be ended early: a test that waits for it fails first."""


def wait_until(condition: Callable[[], bool], failure: str) -> None:
    """Wait until `condition()` holds; fail with the message `failure` after `PATIENCE` seconds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, failure
        time.sleep(0.01)


async def let_tasks_run() -> None:
    """Let every task of this event loop run as far as it gets without waiting for time or for another thread."""
    for _ in range(100):
        await asyncio.sleep(0)


def cpu_seconds(*works: Callable[[], object], rounds: int = 5) -> list[float]:
    """Return the processor time of each of `works`, in seconds: the minimum of `rounds` measurements.

    The measurements alternate, so that what slows the machine down for a while slows all of them down.
    """
    best = [float("inf")] * len(works)
    for _ in range(rounds):
        for number, work in enumerate(works):
            start = time.process_time()
            work()
            best[number] = min(best[number], time.process_time() - start)
    return best
