"""One model on several servers: each request goes to the server with the fewest requests in flight.

A server that fails is paused, and its request goes to a different server at once. After a 429 or 503, the number of
requests that a server gets at a time is halved. Each success then raises it a little: additive increase and
multiplicative decrease, as in TCP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rank_k.errors import ConnectionFailed, InputError, ModelError, ServerOverloaded
from rank_k.models.base import Capabilities, Model
from rank_k.models.http import HttpModel
from rank_k.types import OnChunk, Request, Response

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""The pause after the first failure of a server, and the longest pause, in seconds. Each further failure doubles it."""


@dataclass(slots=True)
class ServerState:
    """The state of a server.

    Attributes:
        model: The model on this server.
        in_flight: The number of requests in flight to this server.
        sent: The number of requests sent to this server so far.
        limit: The maximum number of requests in flight to this server; None if it has never been overloaded.
        failures: The number of failures since the last response.
        paused_until: The `time.monotonic()` when the pause ends. During the pause, the server receives requests only if
            all servers are paused.
        is_prepared: Whether the server has responded to `prepare`.
        preparing: Ensures that only one task at a time prepares the server.
    """

    model: HttpModel
    in_flight: int = 0
    sent: int = 0
    limit: float | None = None
    failures: int = 0
    paused_until: float = 0.0
    is_prepared: bool = False
    preparing: asyncio.Lock = field(default_factory=asyncio.Lock)

    def count_success(self) -> None:
        self.failures = 0
        if self.limit is not None:
            self.limit += 1 / self.limit

    def count_failure(self, error: ModelError) -> None:
        """Pause the server. If it is overloaded, also limit it to half of the requests that are now in flight."""
        self.failures += 1
        pause = min(FIRST_PAUSE * 2 ** min(self.failures - 1, 30), LONGEST_PAUSE)
        if isinstance(error, ServerOverloaded):
            self.limit = max(self.in_flight / 2, 1.0)
            pause = min(max(error.retry_after or 0.0, 0.0), LONGEST_PAUSE)
        self.paused_until = max(self.paused_until, time.monotonic() + pause)

    def is_available(self, now: float) -> bool:
        """Return whether the server may receive a request now."""
        return now >= self.paused_until and (self.limit is None or self.in_flight < max(self.limit, 1.0))


def _check_same(first: HttpModel, second: HttpModel) -> None:
    """Raise `InputError` if two servers do not serve the same model in the same way."""
    for what, expected, own in (
        ("model", first.identity, second.identity),
        ("server type", first.server_type.name, second.server_type.name),
    ):
        if own != expected:
            raise InputError(
                f"{first.url} and {second.url} differ in their {what}: {expected} and {own}",
                "give servers of the same type that serve the same model",
            )


class BalancedModel(Model):
    """The same model on several servers.

    Args:
        models: The model on each server, one `HttpModel` per server.

    `prepare` raises `InputError` if the servers have different models or are of different types, and
    `ConnectionFailed` if none of the servers can be reached. A server that cannot be reached is tried again later.
    """

    def __init__(self, models: Sequence[HttpModel]) -> None:
        self._servers = [ServerState(model) for model in models]

    @property
    def _first(self) -> HttpModel:
        """The model on the first prepared server. Its name and identity are those of all servers."""
        return next((server.model for server in self._servers if server.is_prepared), self._servers[0].model)

    @property
    def name(self) -> str:
        return self._first.name

    @property
    def identity(self) -> str:
        return self._first.identity

    @property
    def context_length(self) -> int:
        return min(server.model.context_length for server in self._servers)

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities that all prepared servers have."""
        all_capabilities = [server.model.capabilities for server in self._servers if server.is_prepared]
        return Capabilities(*map(all, zip(*(all_capabilities or [self._first.capabilities]), strict=True)))

    def request_body(self, request: Request) -> Mapping[str, Any]:
        return self._first.request_body(request)

    async def prepare(self) -> None:
        results = await asyncio.gather(*map(self._prepare_server, self._servers), return_exceptions=True)
        errors = [result for result in results if isinstance(result, BaseException)]
        for error in errors:
            if len(errors) == len(results) or not isinstance(error, ConnectionFailed):
                raise error

    async def _prepare_server(self, server: ServerState) -> None:
        """Prepare a server unless it is prepared already, and check that it serves the same model as the others."""
        async with server.preparing:
            if server.is_prepared:
                return
            try:
                await server.model.prepare()
            except ModelError as error:
                server.count_failure(error)
                raise
            others = [other.model for other in self._servers if other.is_prepared]
            server.is_prepared = True
            for other in others[:1]:
                _check_same(other, server.model)

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        """Send a request to the server with the fewest requests in flight. If it fails, send it to a different server.

        Raises `ModelError` if both servers fail. Errors that are not retryable are raised at once.
        """
        server = await self._next_server(None)
        try:
            return await self._send(server, request, on_chunk)
        except ModelError as error:
            if not error.retryable:
                raise
            other = await self._next_server(server)
            if other is server:
                raise
            return await self._send(other, request, on_chunk)

    async def _next_server(self, failed: ServerState | None) -> ServerState:
        """Return the available server with the fewest requests in flight, other than `failed` if possible.

        Waits while all servers are at their limits. If all servers are paused, returns the one whose pause ends first.
        """
        while True:
            now = time.monotonic()
            candidates = [server for server in self._servers if server is not failed] or self._servers
            available = [server for server in candidates if server.is_available(now)]
            if available:
                return min(available, key=lambda server: (server.in_flight, server.sent))
            if all(now < server.paused_until for server in self._servers):
                return min(candidates, key=lambda server: server.paused_until)
            await asyncio.sleep(0.05)

    async def _send(self, server: ServerState, request: Request, on_chunk: OnChunk | None) -> Response:
        server.in_flight += 1
        server.sent += 1
        try:
            await self._prepare_server(server)
            response = await server.model.complete(request, on_chunk)
        except ModelError as error:
            if error.retryable:
                server.count_failure(error)
            raise
        finally:
            server.in_flight -= 1
        server.count_success()
        return response

    async def count_tokens(self, text: str) -> int | None:
        server = await self._next_server(None)
        await self._prepare_server(server)
        return await server.model.count_tokens(text)

    async def close(self) -> None:
        for server in self._servers:
            await server.model.close()
