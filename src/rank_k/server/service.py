"""Ranks the requests of many clients with one reranker, whose model, journal and concurrency they share.

Nothing here knows of HTTP.
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

_CLEANUP_SECONDS = 5.0  # for cancelled requests to clean up in: stopping must end


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
    """Ranks the requests of all clients with one reranker.

    Args:
        reranker: Is not closed: whoever made it closes it, after `stop`. Without one, all requests are rejected.
        limits: Of a request and of all of them.
        on_error: Is called with errors whose details clients must not see.
        journal: The journal that the page shows (default: the reranker's).
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
        """The model's name; empty if there is none."""
        return self._reranker.model.name if self._reranker else ""

    @property
    def method(self) -> ScoringMethod | None:
        """The scoring method, if there is a model."""
        return self._reranker.method if self._reranker else None

    async def rank(
        self, request: RankingRequest, client: str, request_id: str, listener: ProgressListener
    ) -> RankedHits:
        """Return the ranking, which the journal stores as `request_id`. Cancelling it cancels the requests in flight.

        A deadline counts from now. If it passes before the request is admitted, the documents keep their order.

        Raises:
            ApiError: If the request is rejected.
            RankKError: If the model or the journal fails.
        """
        reranker = self._reranker
        if reranker is None:
            raise ApiError(503, "this server has no model: it shows a journal and ranks nothing")
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
        """Admit no more requests, reject waiting ones, and cancel those still running after the shutdown timeout.

        Every finished call is in the journal by then.
        """
        self.queue.close()
        if not await self.queue.wait_until_idle(self.limits.shutdown_timeout):
            self.cancel_all()
            await self.queue.wait_until_idle(_CLEANUP_SECONDS)

    def cancel_all(self) -> None:
        """Cancel all running requests: they are answered with an error."""
        self._aborted.set()

    def report_error(self, error: BaseException) -> ApiError:
        """Return the error for the client. `on_error` is called with the cause, which clients must not see."""
        cause = error.__cause__ if isinstance(error, ApiError) else error
        if self._on_error is not None and isinstance(cause, Exception):
            self._on_error(cause)
        return error if isinstance(error, ApiError) else to_api_error(error)


async def _rank(
    reranker: Reranker, request: RankingRequest, options: Mapping[str, Any], listener: ProgressListener
) -> RankedHits:
    """Return the ranking. Raises `RankKError` if no window has an answer since all retries failed."""
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
        raise errors[-1]  # a run would continue with its other queries, but here there is nothing else
    return hits


def _check_options(reranker: Reranker, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the client's options for `reranker`, the strategy made. Raises `ApiError` for one that does not fit it."""
    if options and reranker.method == "likelihood":
        raise invalid_field(next(iter(options)), "this server ranks by likelihood, which has none; leave it out")
    if "strategy" not in options:
        return dict(options)
    try:
        return {**options, "strategy": build_strategy(options["strategy"], reranker.options)}
    except InputError:
        message = f"{options['strategy']} does not go with this server's windows"
        raise invalid_field("strategy", message) from None
