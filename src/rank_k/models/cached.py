"""Calls to a model through the journal: looked up there first, and kept there before they are used."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from rank_k.journal import Journal, call_key
from rank_k.models.base import Model
from rank_k.models.retry import RetryPolicy, call_with_retries
from rank_k.models.single_flight import SingleFlight
from rank_k.types import OnChunk, Request, Response, StreamChunk, Usage


@dataclass(slots=True)
class CallStats:
    """What the calls about one window add up to. `calls`: their keys in the journal; `asked` of them went to the
    model now, for `seconds`."""

    calls: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    repairs: Counter[str] = field(default_factory=Counter)
    new_calls: int = 0
    seconds: float = 0.0
    saved_tokens: int = 0


class CachedCalls:
    """Asks `model` through `journal`, on `slots` at a time, whoever asks."""

    def __init__(
        self,
        model: Model,
        journal: Journal,
        retries: RetryPolicy = RetryPolicy(),
        on_retry: Callable[[Exception, float], None] | None = None,
        slots: int = 1_000_000,
    ) -> None:
        self._model = model
        self._journal = journal
        self._retries = retries
        self._on_retry = on_retry
        self._random = Random()
        self._slots = asyncio.Semaphore(slots)
        self._under_way: SingleFlight[Response, StreamChunk] = SingleFlight()

    async def complete(
        self,
        request: Request,
        purpose: str,
        spent: CallStats,
        on_text: OnChunk | None = None,
        ask: Callable[[Request, OnChunk], Awaitable[Response]] | None = None,
    ) -> Response:
        """The reply to `request`, asked for by `ask` (the model's own by default) unless the journal has it.

        Who asks what is being asked already waits for the same reply; it counts as asked once. `on_text` hears it as
        it arrives, and one that is known already at once. `purpose` is the journal's word for why. Raises `ModelError`
        when the model cannot be had.
        """
        body = self._model.request_body(request)
        key = call_key(self._model.identity, body, request.sample)
        reply = self._journal.find_response(key)
        if reply is None:
            asking = ask or self._model.complete

            async def kept(tell: OnChunk) -> Response:
                async with self._slots:
                    told = await call_with_retries(
                        lambda: asking(request, tell), self._retries, self._random, self._on_retry
                    )
                shown = request.context.doc_ids
                return self._journal.store_call(key, self._model.name, purpose, body, told, shown)

            reply, asked_here = await self._under_way.share(key, kept, on_text)
            if asked_here:
                spent.new_calls += 1
                spent.seconds += reply.seconds
        elif on_text is not None:
            on_text(StreamChunk(reply.reasoning or "", reply.text))
        spent.calls.append(key)
        spent.usage += reply.usage
        return reply
