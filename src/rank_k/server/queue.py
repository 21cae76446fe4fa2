"""Whose turn it is: first come first served, no client with more than its share, and nobody waits without end in sight.

For one event loop. Nothing here knows what the work is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from rank_k.server.api_errors import server_stopping, too_busy
from rank_k.server.config import Limits

_SMOOTHING = 0.1  # of the latest piece of work in the average duration


@dataclass(eq=False, slots=True)
class _QueuedRequest:
    client: str
    granted: asyncio.Future[None]


class RequestQueue:
    """`async with queue.admit(client)` waits for a turn and holds it. Raises `ApiError` where there is none."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: list[_QueuedRequest] = []  # in the order in which they came
        self._running: Counter[str] = Counter()
        self._average_seconds = 1.0  # that a piece of work takes, on average
        self._idle = asyncio.Event()
        self._idle.set()
        self.closed = False

    @property
    def running(self) -> int:
        return self._running.total()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def admit(self, client: str) -> AsyncIterator[None]:
        await self._acquire(client)
        started = time.monotonic()
        try:
            yield
        finally:
            self._average_seconds += _SMOOTHING * (time.monotonic() - started - self._average_seconds)
            self._release(client)

    def close(self) -> None:
        """No new work: whoever waits is turned away, whoever has a turn keeps it."""
        self.closed = True
        for waiting in self._waiting:
            if not waiting.granted.done():
                waiting.granted.set_exception(server_stopping())
        self._waiting.clear()

    async def wait_until_idle(self) -> None:
        """Until nobody has a turn."""
        await self._idle.wait()

    async def _acquire(self, client: str) -> None:
        if self.closed:
            raise server_stopping()
        if self._has_capacity(client):
            self._mark_running(client)
            return
        queue = self._limits.queue
        if len(self._waiting) >= queue:
            raise too_busy(self._expected_wait(), f"{len(self._waiting)} requests are waiting already")
        if sum(waiting.client == client for waiting in self._waiting) >= math.ceil(queue / 2):
            raise too_busy(self._expected_wait(), "too many requests of yours are waiting already")
        waiting = _QueuedRequest(client, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            await waiting.granted
        except asyncio.CancelledError:
            if waiting in self._waiting:
                self._waiting.remove(waiting)
            elif waiting.granted.done() and not waiting.granted.cancelled() and waiting.granted.exception() is None:
                self._release(client)  # cancelled in the moment in which its turn came
            raise

    def _has_capacity(self, client: str) -> bool:
        return self.running < self._limits.max_concurrent and self._running[client] < self._limits.per_client

    def _mark_running(self, client: str) -> None:
        self._running[client] += 1
        self._idle.clear()

    def _release(self, client: str) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        for waiting in list(self._waiting):
            if self.running >= self._limits.max_concurrent:
                break
            # One whose client has just left stands here until its task runs again, and takes nothing any more.
            if not waiting.granted.done() and self._has_capacity(waiting.client):
                self._waiting.remove(waiting)
                self._mark_running(waiting.client)
                waiting.granted.set_result(None)
        if not self._running:
            self._idle.set()

    def _expected_wait(self) -> int:
        """Seconds until those who wait now have had their turn, going by how long the work took of late."""
        rounds = (len(self._waiting) + self.running) / self._limits.max_concurrent
        return min(max(math.ceil(rounds * self._average_seconds), 1), 120)
