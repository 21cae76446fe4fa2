"""Calls to a model through the journal: looked up there first, and kept there before they are used."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from rank_k.journal import Journal, call_key
from rank_k.models.base import Model, Reply, Request, Usage
from rank_k.models.retries import Retries, with_retries


@dataclass(slots=True)
class Spent:
    """What the calls about one window add up to. `calls`: their keys in the journal; `asked` of them went to the
    model now, for `seconds`."""

    calls: list[str] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    repairs: Counter[str] = field(default_factory=Counter)
    asked: int = 0
    seconds: float = 0.0
    saved: int = 0


class Calls:
    """Asks `model` through `journal`, on `slots` at a time, whoever asks."""

    def __init__(
        self,
        model: Model,
        journal: Journal,
        retries: Retries = Retries(),
        on_retry: Callable[[Exception, float], None] | None = None,
        slots: int = 1_000_000,
    ) -> None:
        self._model = model
        self._journal = journal
        self._retries = retries
        self._on_retry = on_retry
        self._random = Random()
        self._slots = asyncio.Semaphore(slots)

    async def reply(
        self, request: Request, purpose: str, spent: Spent, ask: Callable[[Request], Awaitable[Reply]] | None = None
    ) -> Reply:
        """The reply to `request`, asked for by `ask` (the model's own by default) unless the journal has it.

        `purpose` is the journal's word for why. Raises `ModelError` when the model cannot be had.
        """
        asking = ask or self._model.ask
        body = self._model.body(request)
        key = call_key(self._model.identity, body, request.sample)
        reply = self._journal.reply(key)
        if reply is None:
            async with self._slots:
                reply = await with_retries(lambda: asking(request), self._retries, self._random, self._on_retry)
            shown = request.subject.doc_ids
            reply = self._journal.keep(key, self._model.name, purpose, body, reply, shown)
            spent.asked += 1
            spent.seconds += reply.seconds
        spent.calls.append(key)
        spent.usage += reply.usage
        return reply
