"""Admits requests: first come, first served, with limits for all, for each client and for those that wait.

For one event loop. Nothing here knows what the work is.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from rank_k.server.api_errors import server_stopping, too_busy
from rank_k.server.config import Limits

_SMOOTHING = 0.1  # weight of the latest piece of work in the average duration


class RequestQueue:
    """`async with queue.admit(client)` waits for a turn and holds it. Raises `ApiError` if there is none."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[asyncio.Future[None], str] = {}  # the client of each turn, in the order of arrival
        self._running: Counter[str] = Counter()
        self._average_seconds = 1.0  # duration of a piece of work
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    @property
    def running(self) -> int:
        return self._running.total()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @asynccontextmanager
    async def admit(self, client: str) -> AsyncIterator[None]:
        await self._wait_for_turn(client)
        started = time.monotonic()
        try:
            yield
        finally:
            self._average_seconds += _SMOOTHING * (time.monotonic() - started - self._average_seconds)
            self._release(client)

    def close(self) -> None:
        """Admit no more work: waiting requests are rejected, running ones continue."""
        self._closed = True
        for turn in self._waiting:
            if not turn.done():
                turn.set_exception(server_stopping())
        self._waiting.clear()

    async def wait_until_idle(self, seconds: float | None = None) -> bool:
        """Wait until nothing runs, for at most `seconds`. Return whether nothing runs."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        return self._idle.is_set()

    async def _wait_for_turn(self, client: str) -> None:
        if self._closed:
            raise server_stopping()
        if not self._can_start(client):
            self._check_capacity(client)
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = client
        self._grant_turns()
        try:
            await turn
        except asyncio.CancelledError:
            self._waiting.pop(turn, None)
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._release(client)  # cancelled in the moment in which its turn came
            raise

    def _can_start(self, client: str) -> bool:
        return self.running < self._limits.max_concurrent and self._running[client] < self._limits.per_client

    def _check_capacity(self, client: str) -> None:
        """Raise `ApiError` if too many requests wait, of all clients or of this one."""
        if self.waiting >= self._limits.queue:
            raise too_busy(self._expected_wait(), f"{self.waiting} requests are waiting already")
        if list(self._waiting.values()).count(client) >= math.ceil(self._limits.queue / 2):
            raise too_busy(self._expected_wait(), "too many requests of yours are waiting already")

    def _grant_turns(self) -> None:
        for turn, client in list(self._waiting.items()):
            if not turn.done() and self._can_start(client):  # done: cancelled, but its task has not run since
                del self._waiting[turn]
                self._running[client] += 1
                self._idle.clear()
                turn.set_result(None)

    def _release(self, client: str) -> None:
        self._running[client] -= 1
        if not self._running[client]:
            del self._running[client]
        self._grant_turns()
        if not self._running:
            self._idle.set()

    def _expected_wait(self) -> int:
        """Return the seconds until those who wait now have had their turn, at the average duration."""
        rounds = (self.waiting + self.running) / self._limits.max_concurrent
        return min(max(math.ceil(rounds * self._average_seconds), 1), 120)
