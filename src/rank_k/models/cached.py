"""Calls to a model through the journal: looked up there first, and kept there before they are used."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from rank_k.journal import Journal, call_key
from rank_k.models.base import Model
from rank_k.models.retry import RetryPolicy, call_with_retries
from rank_k.models.single_flight import SingleFlight
from rank_k.types import CallTotals, OnChunk, Request, Response, StreamChunk


@dataclass(slots=True)
class CallStats(CallTotals):
    """Totals of the calls for one window. `call_keys`: their keys in the journal."""

    call_keys: list[str] = field(default_factory=list)


class CachedCalls:
    """Calls `model` through `journal`, with at most `concurrency` requests in flight."""

    def __init__(
        self,
        model: Model,
        journal: Journal,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        concurrency: int = 1_000_000,
    ) -> None:
        self._model = model
        self._journal = journal
        self._retries = retries
        self._on_retry = on_retry
        self._random = Random()
        self._semaphore = asyncio.Semaphore(concurrency)
        self._in_flight: SingleFlight[Response, StreamChunk] = SingleFlight()

    async def complete(
        self,
        request: Request,
        purpose: str,
        stats: CallStats,
        on_chunk: OnChunk | None = None,
        send: Callable[[Request, OnChunk], Awaitable[Response]] | None = None,
    ) -> Response:
        """Return the response to `request`: from the journal, else by `send` (default: the model's `complete`).

        Identical requests in flight share one response and count as one call. `on_chunk` receives the response as it
        arrives; a stored response arrives in one chunk. `purpose` is stored in the journal. Raises `ModelError` if the
        model cannot be reached.
        """
        body = self._model.request_body(request)
        key = call_key(self._model.identity, body, request.sample)
        response = self._journal.find_response(key)
        if response is None:
            send_request = send or self._model.complete

            async def call_and_store(publish: OnChunk) -> Response:
                async with self._semaphore:
                    response = await call_with_retries(
                        lambda: send_request(request, publish), self._retries, self._random, self._on_retry
                    )
                doc_ids = request.context.doc_ids
                return self._journal.store_call(key, self._model.name, purpose, body, response, doc_ids)

            response, is_new_call = await self._in_flight.share(key, call_and_store, on_chunk)
            if is_new_call:
                stats.new_calls += 1
                stats.model_seconds += response.seconds
        elif on_chunk is not None:
            on_chunk(StreamChunk(response.reasoning or "", response.text))
        stats.calls += 1
        stats.call_keys.append(key)
        stats.usage += response.usage
        return response
