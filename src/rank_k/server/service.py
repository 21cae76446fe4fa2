"""Where requests for rankings are taken: each waits for its turn, is worked on, and is answered or refused.

Stands between HTTP, which it knows nothing of, and one reranker, whose model, journal and slots all requests share.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, Protocol

from rank_k.errors import InputError, RankKError
from rank_k.reranker import Reranker
from rank_k.server.api_errors import ApiError, invalid_field, server_stopping, to_api_error
from rank_k.server.config import Limits
from rank_k.server.metrics import Metrics
from rank_k.server.queue import RequestQueue
from rank_k.server.requests import RerankRequest
from rank_k.types import RankedHits, Ranking, ScoringMethod, StreamChunk, Window, unranked_hits
from rank_k.window.listwise import WindowReport

_LEAVING = 5.0  # seconds that work which was ended has to clean up in: stopping must come to an end


class ProgressListener(Protocol):
    """Hears of a ranking while it forms. Called from another thread; must not block."""

    def on_window(self, round_number: int, number: int, window: Window) -> None:
        """A window is being asked about."""

    def on_chunk(self, round_number: int, window: int, piece: StreamChunk) -> None:
        """A piece of what the model says of a window."""

    def on_result(self, round_number: int, window: int, asked: WindowReport) -> None:
        """What became of a window."""

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        """The best ranking after a round, where others follow. Ids are the documents' indices."""


class RerankService:
    """`on_error` is told what goes wrong behind the server: clients get no more than its kind. Without a reranker no
    request is worked on. `journal`: what the page shows, if not the reranker's own.

    Does not own `reranker`: whoever made it closes it, after `stop`.
    """

    def __init__(
        self,
        reranker: Reranker | None,
        limits: Limits = Limits(),
        on_error: Callable[[Exception], None] | None = None,
        *,
        journal: Path | None = None,
    ) -> None:
        self.journal = journal or (None if reranker is None else reranker.journal.path)
        self.limits = limits
        self.admission = RequestQueue(limits)
        self.metrics = Metrics(lambda: self.admission.running, lambda: self.admission.waiting)
        self._reranker = reranker
        self._on_error = on_error
        self._work: set[asyncio.Task[RankedHits]] = set()
        self._cut_short = False

    @property
    def model(self) -> str:
        """The model's name; empty where there is none."""
        return self._reranker.model.name if self._reranker else ""

    @property
    def method(self) -> ScoringMethod | None:
        """What is ranked by, if anything is."""
        return self._reranker.method if self._reranker else None

    async def rank(
        self, wanted: RerankRequest, client: str, name: str, audience: ProgressListener | None = None
    ) -> RankedHits:
        """The ranking, which the journal keeps as `name`. Cancelling it cancels the work down to the model.

        Raises a `Refusal` where there is none.
        A deadline counts from now; whose turn has not come by then gets the documents as they are.
        """
        reranker = self._checked(wanted)
        seconds = self.limits.deadline_seconds if wanted.deadline_seconds is None else wanted.deadline_seconds
        ends = None if seconds is None else time.monotonic() + seconds
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(seconds):
                    await stack.enter_async_context(self.admission.turn(client))
            except TimeoutError:
                hits = unranked_hits(wanted.documents)
            else:
                hits = await self._finished_or_refused(reranker, wanted, ends, name, audience)
        self.metrics.ranked(hits)
        return hits

    async def stop(self) -> None:
        """Take no new work and turn away who waits; after the grace period, end what is still under way.

        Every call that was finished is in the journal by then.
        """
        self.admission.close()
        try:
            async with asyncio.timeout(self.limits.grace_seconds):
                await self.admission.idle()
        except TimeoutError:
            self.cancel_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(_LEAVING):
                    await self.admission.idle()

    def cancel_all(self) -> None:
        """End what is under way now: who waits for it is refused."""
        self._cut_short = True
        for work in self._work:
            work.cancel()

    def failed(self, error: Exception) -> ApiError:
        """What a client is told of `error`, which `on_error` hears of in full."""
        if self._on_error is not None:
            self._on_error(error)
        return to_api_error(error)

    def _checked(self, wanted: RerankRequest) -> Reranker:
        """Refuse what this server's model has no use for: better than to leave it out in silence."""
        if self._reranker is None:
            raise ApiError(503, "this server has no model: it shows a journal and ranks nothing")
        for name, value in {"reasoning": wanted.reasoning, "strategy": wanted.strategy}.items():
            if value is not None and self._reranker.method == "likelihood":
                raise invalid_field(name, "this server ranks by likelihood, which has none; leave it out")
        return self._reranker

    async def _finished_or_refused(
        self,
        reranker: Reranker,
        wanted: RerankRequest,
        ends: float | None,
        name: str,
        audience: ProgressListener | None,
    ) -> RankedHits:
        answered, retries_exhausted = False, None

        def on_asked(round_number: int, window: int, asked: WindowReport) -> None:
            nonlocal answered, retries_exhausted
            retries_exhausted = asked.error or retries_exhausted
            answered = answered or any(order.is_valid for order in asked.result.rankings)
            if audience is not None:
                audience.on_result(round_number, window, asked)

        work = asyncio.create_task(
            reranker.arank(
                wanted.query,
                wanted.documents,
                name=name,
                strategy=_strategy(reranker, wanted),
                reasoning=wanted.reasoning,
                max_seconds=None if ends is None else max(ends - time.monotonic(), 0.0),
                on_window=audience and audience.on_window,
                on_text=audience and audience.on_chunk,
                on_asked=on_asked,
                on_ranking=audience and audience.on_ranking,
            )
        )
        self._work.add(work)
        try:
            hits = await work
        except asyncio.CancelledError:
            if self._cut_short and work.cancelled() and not _is_being_cancelled():
                raise server_stopping() from None
            raise
        except RankKError as error:
            raise self.failed(error) from None
        finally:
            self._work.discard(work)
        if retries_exhausted is not None and not answered and hits.finished:
            raise self.failed(retries_exhausted)  # a run goes on with its other queries, but here there is nothing else
        return hits


def _strategy(reranker: Reranker, wanted: RerankRequest) -> Any:
    try:
        return None if wanted.strategy is None else reranker.make_strategy(wanted.strategy)
    except InputError as error:
        raise invalid_field("strategy", f"{wanted.strategy} does not go with this server's windows") from error


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
