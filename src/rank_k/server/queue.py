"""The queue of requests: first in, first out, with limits on running requests, on waiting requests and per client.

A queue must only be used in one event loop.
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

_SMOOTHING = 0.1  # weight of the latest request in the average duration


class RequestQueue:
    """Admits requests within `limits`."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._waiting: dict[object, str] = {}  # the client of each waiting request, in the order of arrival
        self._running: Counter[str] = Counter()  # requests by client
        self._average_seconds = 1.0  # duration of a request
        self._changed = asyncio.Event()
        self._closed = False

    @property
    def running(self) -> int:
        """The number of running requests."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """The number of waiting requests."""
        return len(self._waiting)

    @asynccontextmanager
    async def admit(self, client: str) -> AsyncIterator[None]:
        """Wait until a request of `client` may run. It counts as running until the `async with` block ends.

        Raises:
            ApiError: If too many requests are waiting, or the queue is closed.
        """
        await self._wait_for_turn(client)
        self._running[client] += 1
        started = time.monotonic()
        try:
            yield
        finally:
            self._average_seconds += _SMOOTHING * (time.monotonic() - started - self._average_seconds)
            self._running -= Counter({client: 1})  # which removes clients without running requests
            self._notify_all()

    def close(self) -> None:
        """Reject waiting and new requests. Running requests continue."""
        self._closed = True
        self._notify_all()

    async def wait_until_idle(self, seconds: float | None = None) -> bool:
        """Wait at most `seconds` until no request is running. Return whether no request is running."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._running:
                    await self._changed.wait()
        return not self._running

    async def _wait_for_turn(self, client: str) -> None:
        if not (self._closed or self._can_start(client)):
            self._check_capacity(client)
        request = object()
        self._waiting[request] = client
        try:
            while not self._closed and self._next_request() is not request:
                await self._changed.wait()
        finally:
            del self._waiting[request]
            self._notify_all()  # the next request in the queue may be able to start now
        if self._closed:
            raise server_stopping()

    def _next_request(self) -> object | None:
        """Return the first waiting request whose client may start one now."""
        return next((request for request, client in self._waiting.items() if self._can_start(client)), None)

    def _can_start(self, client: str) -> bool:
        return self.running < self._limits.max_concurrent and self._running[client] < self._limits.per_client

    def _check_capacity(self, client: str) -> None:
        """Raise `ApiError` if there are too many waiting requests, in total or of this client."""
        if self.waiting >= self._limits.queue:
            raise too_busy(self._expected_wait(), f"the queue is full ({self.waiting} waiting)")
        if list(self._waiting.values()).count(client) >= math.ceil(self._limits.queue / 2):
            raise too_busy(self._expected_wait(), "too many of your requests are already waiting")

    def _notify_all(self) -> None:
        """Wake all tasks that wait for a change. The event is cleared at once, so that it signals only this change."""
        self._changed.set()
        self._changed.clear()

    def _expected_wait(self) -> int:
        """Return the expected time until all current requests are finished: 1 to 120 seconds."""
        rounds = (self.waiting + self.running) / self._limits.max_concurrent
        return min(max(math.ceil(rounds * self._average_seconds), 1), 120)
