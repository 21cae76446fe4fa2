"""Run a coroutine function once and share its result among all callers in an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def run_once(work: Callable[[], Coroutine[Any, Any, T]]) -> Callable[[], Coroutine[Any, Any, T]]:
    """Return a coroutine function that runs `work` on its first call, and returns the same result on every call.

    `work` runs again only if it has failed or was cancelled.
    """
    task: asyncio.Task[T] | None = None

    async def result() -> T:
        nonlocal task
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            task = asyncio.create_task(work())
        return await asyncio.shield(task)

    return result
