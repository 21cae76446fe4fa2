"""Rank the requests of many clients with one reranker. All clients share its model, journal and concurrency.

This module does not depend on HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from rank_k.build import build_strategy
from rank_k.errors import InputError
from rank_k.reranker import Reranker
from rank_k.server.api_errors import ApiError, invalid_field, server_stopping, to_api_error
from rank_k.server.config import Limits
from rank_k.server.http_io import run_until
from rank_k.server.metrics import Metrics
from rank_k.server.queue import RequestQueue
from rank_k.server.schema import RankingRequest
from rank_k.types import RankedHits, Ranking, ScoringMethod, StreamChunk, Window, keep_input_order
from rank_k.window.base import WindowReport

_CLEANUP_SECONDS = 5.0  # how long `stop` waits for cancelled requests


class ProgressListener:
    """Receives the progress of a ranking. These methods do nothing unless a subclass overrides them.

    They are called in the thread of the model and must not block. Rounds and windows count from 0.
    """

    def on_window(self, round_number: int, number: int, window: Window) -> None:
        """Called when a window is sent to the model."""

    def on_chunk(self, round_number: int, window: int, chunk: StreamChunk) -> None:
        """Called when a chunk of the model's response to a window has arrived."""

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        """Called when a window is finished."""

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        """Called after each round except the last, with the best ranking so far. Its ids are indices of documents."""


class RerankService:
    """Ranks the requests of all clients with one reranker.

    Args:
        reranker: The reranker, which the caller closes after `stop`. If it is None, all requests are rejected.
        limits: The limits per request and for all requests together.
        on_error: Called with errors whose details must be hidden from clients.
        journal: The journal that the page *Runs* shows (default: the journal of the reranker).

    Attributes:
        journal: The path of the journal that the page *Runs* shows; None if there is none or it is temporary.
        limits: The limits.
        queue: The running and waiting requests.
        metrics: The metrics for Prometheus.
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
        self._aborted = asyncio.Event()

    @property
    def model(self) -> str:
        """The name of the model; empty if there is no model."""
        return self._reranker.model.name if self._reranker else ""

    @property
    def method(self) -> ScoringMethod | None:
        """The scoring method; None if there is no model."""
        return self._reranker.method if self._reranker else None

    async def rank(
        self, request: RankingRequest, client: str, request_id: str, listener: ProgressListener
    ) -> RankedHits:
        """Return the ranking of a request. Cancelling this coroutine cancels the calls in flight.

        The deadline starts now. If it passes before the request can run, the documents keep their input order.

        Args:
            request: The request.
            client: The name of the client, for the limits per client.
            request_id: The id of the query in the journal.
            listener: Receives the progress.

        Raises:
            ApiError: If the request is rejected.
            RankKError: If the model or the journal fails.
        """
        reranker = self._reranker
        if reranker is None:
            raise ApiError(503, "this server has no model: it only shows a journal")
        options = _check_options(reranker, request.options())
        seconds = self.limits.deadline if request.deadline_seconds is None else request.deadline_seconds
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(seconds):
                    await stack.enter_async_context(self.queue.admit(client))
            except TimeoutError:
                hits = keep_input_order(request.texts)
            else:
                if seconds is not None:
                    options["max_seconds"] = max(started + seconds - time.monotonic(), 0.0)
                work = _rank(reranker, request, {**options, "name": request_id}, listener)
                hits = await run_until(self._aborted.wait(), work, server_stopping())
        self.metrics.record_ranking(hits)
        return hits

    async def stop(self) -> None:
        """Reject new and waiting requests, and cancel requests that still run after the shutdown timeout.

        After this, the journal contains every finished call.
        """
        self.queue.close()
        if not await self.queue.wait_until_idle(self.limits.shutdown_timeout):
            self.cancel_all()
            await self.queue.wait_until_idle(_CLEANUP_SECONDS)

    def cancel_all(self) -> None:
        """Cancel all running requests. Their clients get an error."""
        self._aborted.set()

    def report_error(self, error: BaseException) -> ApiError:
        """Return the error for the client, and call `on_error` with its cause, which is hidden from clients."""
        cause = error.__cause__ if isinstance(error, ApiError) else error
        if self._on_error is not None and isinstance(cause, Exception):
            self._on_error(cause)
        return error if isinstance(error, ApiError) else to_api_error(error)


async def _rank(
    reranker: Reranker, request: RankingRequest, options: Mapping[str, Any], listener: ProgressListener
) -> RankedHits:
    """Return the ranking. Raises the last error of the model if no window could be ranked because of errors."""
    reports: list[WindowReport] = []

    def on_result(round_number: int, window: int, report: WindowReport) -> None:
        reports.append(report)
        listener.on_result(round_number, window, report)

    hits = await reranker.arank(
        request.query,
        request.texts,
        on_window=listener.on_window,
        on_chunk=listener.on_chunk,
        on_result=on_result,
        on_ranking=listener.on_ranking,
        **options,
    )
    answered = any(order.is_valid for report in reports for order in report.result.rankings)
    errors = [report.error for report in reports if report.error is not None]
    if errors and not answered and hits.finished:
        raise errors[-1]
    return hits


def _check_options(reranker: Reranker, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a request, with a strategy object. Raises `ApiError` if an option does not apply."""
    if options and reranker.method == "likelihood":
        raise invalid_field(
            next(iter(options)), "does not apply to this server, which ranks by query likelihood; leave it out"
        )
    if "strategy" not in options:
        return dict(options)
    try:
        return {**options, "strategy": build_strategy(options["strategy"], reranker.options)}
    except InputError:
        message = f"{options['strategy']} does not work with the window and stride of this server"
        raise invalid_field("strategy", message) from None
