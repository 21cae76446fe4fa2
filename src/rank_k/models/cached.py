"""A model whose responses are stored in the journal and reused from there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from random import Random
from typing import Any

from rank_k.journal import Journal, call_key
from rank_k.models.base import Model, ModelWrapper
from rank_k.models.retry import RetryPolicy, call_with_retries
from rank_k.types import OnChunk, Request, Response, StreamChunk


class CachedModel(ModelWrapper):
    """A model that stores every response in `journal`, with at most `concurrency` requests in flight.

    A request whose response is in the journal is not sent again, and `on_chunk` receives the stored response in one
    chunk. Identical requests in flight share one response and its chunks. Each new response is stored before it is
    returned. The value that `on_chunk` returns is ignored.

    Args:
        model: The model to call.
        journal: Where responses are stored.
        retries: How often failed requests are repeated (default: `RetryPolicy()`).
        on_retry: Called before each retry with the error and the seconds to wait.
        concurrency: The maximum number of requests in flight (default: 1,000,000, which is practically unlimited).
    """

    def __init__(
        self,
        model: Model,
        journal: Journal,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        concurrency: int = 1_000_000,
    ) -> None:
        super().__init__(model)
        self._journal = journal
        self._retries = retries
        self._on_retry = on_retry
        self._random = Random()
        self._semaphore = asyncio.Semaphore(concurrency)
        self._in_flight: dict[str, _CallInFlight] = {}

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        """Return the response. Its `call_key` and `cached` are set.

        Raises `RetriesExhausted` after the last failed attempt, and other `ModelError`s of the model.
        """
        body = self.model.request_body(request)
        key = call_key(self.model.identity, body, request.sample)
        if (response := self._journal.find_response(key)) is not None:
            if on_chunk is not None:
                on_chunk(StreamChunk(response.reasoning or "", response.text))
            return replace(response, call_key=key, cached=True)
        call = self._in_flight.get(key)
        is_new = call is None or call.task.done()
        if call is None or is_new:
            call = self._in_flight[key] = _CallInFlight(lambda publish: self._send(request, body, key, publish))
        try:
            return replace(await call.wait(on_chunk), call_key=key, cached=not is_new)
        finally:
            if not call.waiter_count:
                if self._in_flight.get(key) is call:
                    del self._in_flight[key]
                await call.cancel()

    async def _send(self, request: Request, body: Mapping[str, Any], key: str, publish: OnChunk) -> Response:
        async with self._semaphore:
            response = await call_with_retries(
                lambda: self.model.complete(request, publish), self._retries, self._random, self._on_retry
            )
        context = request.context
        return self._journal.store_call(key, self.model.name, context.purpose, body, response, context.doc_ids)


class _CallInFlight:
    """A request in flight, and the callers that are waiting for its response."""

    def __init__(self, send: Callable[[OnChunk], Coroutine[Any, Any, Response]]) -> None:
        self.waiter_count = 0
        self._listeners: list[OnChunk] = []
        self._chunks: list[StreamChunk] = []
        self.task = asyncio.create_task(send(self._publish))
        # Retrieve the exception. Otherwise, asyncio logs it if the last waiter was cancelled.
        self.task.add_done_callback(lambda task: task.cancelled() or task.exception())

    def _publish(self, chunk: StreamChunk) -> None:
        self._chunks.append(chunk)
        for listener in self._listeners:
            listener(chunk)

    async def wait(self, on_chunk: OnChunk | None) -> Response:
        """Return the response. `on_chunk` receives all chunks in order, including those received before this call."""
        self.waiter_count += 1
        if on_chunk is not None:
            for chunk in self._chunks:
                on_chunk(chunk)
            self._listeners.append(on_chunk)
        try:
            return await asyncio.shield(self.task)
        finally:
            self.waiter_count -= 1
            if on_chunk is not None:
                self._listeners.remove(on_chunk)

    async def cancel(self) -> None:
        """Cancel the request if it is still in flight, and wait until the model has cleaned up."""
        if not self.task.done():
            self.task.cancel()
            await asyncio.wait([self.task])
