"""Work that several ask for at the same time, done once. For one event loop."""

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
        self.waiting = 0
        self.listeners: list[Callable[[Chunk], object]] = []
        self.told: list[Chunk] = []
        self.task = asyncio.create_task(work(self._tell))
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())  # somebody has seen it

    def _tell(self, news: Chunk) -> None:
        self.told.append(news)
        for listener in self.listeners:
            listener(news)


class SingleFlight(Generic[Result, Chunk]):
    """Work under way, by key. Who asks for the same meanwhile waits for the same result.

    All hear the same news, late-comers from the beginning. When the last one who waits is cancelled, so is the work.
    """

    def __init__(self) -> None:
        self._shared: dict[str, _SharedCall[Result, Chunk]] = {}

    async def share(
        self,
        key: str,
        work: Callable[[Callable[[Chunk], None]], Coroutine[Any, Any, Result]],
        listener: Callable[[Chunk], object] | None = None,
    ) -> tuple[Result, bool]:
        """The result of `work(tell)`, and whether it was begun here rather than found under way."""
        shared = self._shared.get(key)
        begun = shared is None
        if shared is None:
            shared = self._shared[key] = _SharedCall(work)
            shared.task.add_done_callback(lambda _: self._forget(key, shared))
        shared.waiting += 1
        if listener is not None:
            for news in shared.told:
                listener(news)
            shared.listeners.append(listener)
        try:
            return await asyncio.shield(shared.task), begun
        finally:
            shared.waiting -= 1
            if listener is not None:
                shared.listeners.remove(listener)
            if not shared.waiting and not shared.task.done():
                self._forget(key, shared)
                await _ended(shared.task)

    def _forget(self, key: str, shared: _SharedCall[Result, Chunk]) -> None:
        if self._shared.get(key) is shared:
            del self._shared[key]


async def _ended(task: asyncio.Task[Any]) -> None:
    """Cancel `task` and wait until it has cleaned up."""
    task.cancel()
    await asyncio.wait([task])
