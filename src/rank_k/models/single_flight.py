"""Shares one execution among concurrent callers. For one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

Result = TypeVar("Result")
Chunk = TypeVar("Chunk")


class RunOnce(Generic[Result]):
    """`await once()` gives what `work` returned: done once for all who ask, and again after a failure."""

    def __init__(self, work: Callable[[], Coroutine[Any, Any, Result]]) -> None:
        self._work = work
        self._task: asyncio.Task[Result] | None = None

    async def __call__(self) -> Result:
        if self._task is None or (self._task.done() and (self._task.cancelled() or self._task.exception())):
            self._task = asyncio.create_task(self._work())
        return await asyncio.shield(self._task)


class _SharedCall(Generic[Result, Chunk]):
    """One piece of work and all who wait for it."""

    def __init__(self, work: Callable[[Callable[[Chunk], None]], Coroutine[Any, Any, Result]]) -> None:
        self.waiter_count = 0
        self.listeners: list[Callable[[Chunk], object]] = []
        self.chunks: list[Chunk] = []
        self.task = asyncio.create_task(work(self._publish))
        self.task.add_done_callback(
            lambda task: task.cancelled() or task.exception()
        )  # so that asyncio does not report an exception that nobody retrieved

    def _publish(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        for listener in self.listeners:
            listener(chunk)


class SingleFlight(Generic[Result, Chunk]):
    """Work in flight, by key. Callers with the same key share one result.

    All listeners receive the same chunks, late ones from the beginning. Cancelling the last waiter cancels the work.
    """

    def __init__(self) -> None:
        self._calls: dict[str, _SharedCall[Result, Chunk]] = {}

    async def share(
        self,
        key: str,
        work: Callable[[Callable[[Chunk], None]], Coroutine[Any, Any, Result]],
        listener: Callable[[Chunk], object] | None = None,
    ) -> tuple[Result, bool]:
        """Return the result of `work(publish)`, and whether this call began the work."""
        call = self._calls.get(key)
        is_new = call is None
        if call is None:
            call = self._calls[key] = _SharedCall(work)
            call.task.add_done_callback(lambda _: self._remove(key, call))
        call.waiter_count += 1
        if listener is not None:
            for chunk in call.chunks:
                listener(chunk)
            call.listeners.append(listener)
        try:
            return await asyncio.shield(call.task), is_new
        finally:
            call.waiter_count -= 1
            if listener is not None:
                call.listeners.remove(listener)
            if not call.waiter_count and not call.task.done():
                self._remove(key, call)
                await _cancel_and_wait(call.task)

    def _remove(self, key: str, call: _SharedCall[Result, Chunk]) -> None:
        if self._calls.get(key) is call:
            del self._calls[key]


async def _cancel_and_wait(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait until it has cleaned up."""
    task.cancel()
    await asyncio.wait([task])
