"""Where requests for rankings are taken: each waits for its turn, is worked on, and is answered or refused.

Stands between HTTP, which it knows nothing of, and one reranker. All requests share its model, journal and
concurrency.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

from rank_k.build import build_strategy
from rank_k.errors import InputError, RankKError
from rank_k.reranker import Reranker
from rank_k.server.api_errors import ApiError, invalid_field, server_stopping, to_api_error
from rank_k.server.config import Limits
from rank_k.server.metrics import Metrics
from rank_k.server.queue import RequestQueue
from rank_k.server.schema import RankingRequest
from rank_k.types import RankedHits, Ranking, ScoringMethod, StreamChunk, Window, keep_input_order
from rank_k.window.base import WindowReport

_CLEANUP_SECONDS = 5.0  # seconds that work which was ended has to clean up in: stopping must come to an end


class ProgressListener:
    """Receives the progress of a ranking. Called in another thread; must not block. Rounds and windows count from 0."""

    def on_window(self, round_number: int, number: int, window: Window) -> None:
        """A window is sent to the model."""

    def on_chunk(self, round_number: int, window: int, chunk: StreamChunk) -> None:
        """A chunk of the model's response to a window has arrived."""

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        """A window is finished."""

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        """A round is finished and others follow: the best ranking so far. Ids are the documents' indices."""


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
        self.queue = RequestQueue(limits)
        self.metrics = Metrics(lambda: self.queue.running, lambda: self.queue.waiting)
        self._reranker = reranker
        self._on_error = on_error
        self._tasks: set[asyncio.Task[RankedHits]] = set()
        self._cancelling_all = False

    @property
    def model(self) -> str:
        """The model's name; empty where there is none."""
        return self._reranker.model.name if self._reranker else ""

    @property
    def method(self) -> ScoringMethod | None:
        """What is ranked by, if anything is."""
        return self._reranker.method if self._reranker else None

    async def rank(
        self, request: RankingRequest, client: str, request_id: str, listener: ProgressListener
    ) -> RankedHits:
        """Return the ranking, which the journal stores as `request_id`. Cancelling it cancels the requests in flight.

        A deadline counts from now. If it passes before the request is admitted, the documents keep their order.

        Raises:
            ApiError: If the request is rejected, or the model or the journal fails.
        """
        if self._reranker is None:
            raise ApiError(503, "this server has no model: it shows a journal and ranks nothing")
        options = _check_options(self._reranker, request.options())
        seconds = self.limits.deadline if request.deadline_seconds is None else request.deadline_seconds
        deadline = None if seconds is None else time.monotonic() + seconds
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(seconds):
                    await stack.enter_async_context(self.queue.admit(client))
            except TimeoutError:
                hits = keep_input_order(request.texts)
            else:
                if deadline is not None:
                    options["max_seconds"] = max(deadline - time.monotonic(), 0.0)
                hits = await self._run_ranking(self._reranker, request, {**options, "name": request_id}, listener)
        self.metrics.record_ranking(hits)
        return hits

    async def stop(self) -> None:
        """Take no new work and turn away who waits; after the grace period, end what is still under way.

        Every call that was finished is in the journal by then.
        """
        self.queue.close()
        try:
            async with asyncio.timeout(self.limits.shutdown_timeout):
                await self.queue.wait_until_idle()
        except TimeoutError:
            self.cancel_all()
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLEANUP_SECONDS):
                    await self.queue.wait_until_idle()

    def cancel_all(self) -> None:
        """End what is under way now: who waits for it is refused."""
        self._cancelling_all = True
        for task in self._tasks:
            task.cancel()

    def report_error(self, error: Exception) -> ApiError:
        """Report `error` in full to `on_error`, and return the error for the client."""
        if self._on_error is not None:
            self._on_error(error)
        return to_api_error(error)

    async def _run_ranking(
        self, reranker: Reranker, request: RankingRequest, options: Mapping[str, Any], listener: ProgressListener
    ) -> RankedHits:
        answered, retries_exhausted = False, None

        def on_result(round_number: int, window: int, report: WindowReport) -> None:
            nonlocal answered, retries_exhausted
            retries_exhausted = report.error or retries_exhausted
            answered = answered or any(order.is_valid for order in report.result.rankings)
            listener.on_result(round_number, window, report)

        task = asyncio.create_task(
            reranker.arank(
                request.query,
                request.texts,
                on_window=listener.on_window,
                on_chunk=listener.on_chunk,
                on_result=on_result,
                on_ranking=listener.on_ranking,
                **options,
            )
        )
        self._tasks.add(task)
        try:
            hits = await task
        except asyncio.CancelledError:
            if self._cancelling_all and task.cancelled() and not _is_being_cancelled():
                raise server_stopping() from None
            raise
        except RankKError as error:
            raise self.report_error(error) from None
        finally:
            self._tasks.discard(task)
        if retries_exhausted is not None and not answered and hits.finished:
            # A run would continue with its other queries, but here there is nothing else.
            raise self.report_error(retries_exhausted)
        return hits


def _check_options(reranker: Reranker, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the client's options for `reranker`, the strategy made. Raises `ApiError` for one that does not fit it."""
    for name in options:
        if reranker.method == "likelihood":
            raise invalid_field(name, "this server ranks by likelihood, which has none; leave it out")
    if "strategy" not in options:
        return dict(options)
    try:
        return {**options, "strategy": build_strategy(options["strategy"], reranker.options)}
    except InputError as error:
        message = f"{options['strategy']} does not go with this server's windows"
        raise invalid_field("strategy", message) from error


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
