"""Run a coroutine function once and share its result among all callers in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_once(work: Callable[[], Coroutine[Any, Any, T]]) -> Callable[[], Coroutine[Any, Any, T]]:
    """Return a function with the result of `work()`, which runs once, and again only if it failed or was cancelled."""
    task: asyncio.Task[T] | None = None

    async def result() -> T:
        nonlocal task
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(work())
        return await asyncio.shield(task)

    return result
