"""Stream a ranking as server-sent events.

    event: window    {"round", "window", "shown"}                    a window is sent to the model
    event: trace     {"round", "window", "reasoning", "text"}        a chunk of the response, to be concatenated
    event: order     {"round", "window", "shown", "tiers", "ranked", "repairs", "usage"}    the ranking of a window
    event: ranking   {"round", "indices"}                            the best ranking so far, if more rounds follow
    event: result    the response to the same request without `stream`
    event: error     {"status", "message", "detail"}                 instead of a result

Rounds and windows count from 1. `shown` lists the documents of the window in input order, and `tiers` lists them by
rank, with tied documents in the same list. Documents are identified by their index in the request, from 0. If a request
fails before the first event, the response is an ordinary error response. After the first event, the status is 200.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from rank_k.optional_deps import load
from rank_k.server.api_errors import ApiError
from rank_k.server.http_io import (
    Receive,
    Scope,
    Send,
    client_disconnected,
    run_until,
    to_json_bytes,
    wait_for_disconnect,
)
from rank_k.server.service import ProgressListener
from rank_k.types import Ranking, StreamChunk, Window
from rank_k.window.base import WindowReport

_PING_SECONDS = 15


class EventStream(ProgressListener):
    """An ASGI response that streams the events of a ranking. The ranking is cancelled when the client disconnects.

    Args:
        rank: Ranks the documents, reports progress to its argument, and returns the response as JSON values.
        report_error: Reports an error to the operator, and returns the error for the client.
    """

    def __init__(
        self, rank: Callable[[ProgressListener], Awaitable[Any]], report_error: Callable[[BaseException], ApiError]
    ) -> None:
        self._rank = rank
        self._report_error = report_error
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[str, Any] | None] = asyncio.Queue()

    def on_window(self, round_number: int, number: int, window: Window) -> None:
        self._post("window", round_number, window=number + 1, shown=[*map(int, window.doc_ids)])

    def on_chunk(self, round_number: int, window: int, chunk: StreamChunk) -> None:
        self._post("trace", round_number, window=window + 1, **chunk._asdict())

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        usage = {"prompt_tokens": report.usage.prompt_tokens, "completion_tokens": report.usage.completion_tokens}
        for order in report.result.rankings:
            self._post(
                "order",
                round_number,
                window=window + 1,
                shown=[*map(int, report.result.window.doc_ids)],
                tiers=[[*map(int, tier)] for tier in order.tiers],
                ranked=order.is_valid,
                repairs=dict(report.repairs),
                usage=usage,
            )

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        self._post("ranking", round_number, indices=[*map(int, ranking.doc_ids)])

    def _post(self, kind: str, round_number: int, **data: Any) -> None:
        """Queue an event. Called from the thread of the model."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, (kind, {"round": round_number + 1, **data}))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sse: Any = load("sse_starlette")
        work = asyncio.ensure_future(self._rank(self))
        work.add_done_callback(lambda _: self._events.put_nowait(None))
        first = asyncio.create_task(self._events.get())
        try:
            first_or_ping = asyncio.wait((first,), timeout=_PING_SECONDS)
            await run_until(wait_for_disconnect(receive), first_or_ping, client_disconnected())
            if first.done() and first.result() is None:
                work.result()  # raises the error of a ranking that failed before its first event
            response = sse.EventSourceResponse(
                self._content(first, work),
                ping=_PING_SECONDS,
                ping_message_factory=lambda: sse.ServerSentEvent(comment="waiting", sep="\n"),
                sep="\n",
            )
            await response(scope, receive, send)
        finally:
            first.cancel()
            work.cancel()
            await asyncio.gather(first, work, return_exceptions=True)

    async def _content(
        self, first: Awaitable[tuple[str, Any] | None], work: asyncio.Future[Any]
    ) -> AsyncIterator[bytes]:
        event = await first
        while event is not None:
            yield _format_event(*event)
            event = await self._events.get()
        if error := work.exception():
            api_error = self._report_error(error)
            yield _format_event("error", {"status": api_error.status, **api_error.body()})
        else:
            yield _format_event("result", work.result())


def _format_event(kind: str, data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + to_json_bytes(data) + b"\n\n"
