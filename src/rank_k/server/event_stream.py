"""A ranking as server-sent events: what the model says of each window, each order, the ranking so far, the result.

    event: window    {"round", "window", "shown"}                    it is being asked about
    event: trace     {"round", "window", "reasoning", "text"}        pieces, to be put together
    event: order     {"round", "window", "shown", "tiers", "ranked", "repairs", "usage"}
    event: ranking   {"round", "indices"}                            the best so far, where more rounds follow
    event: result    what the same request gets without `stream`
    event: error     {"status", "message", "detail"}                 instead of a result

Rounds and windows count from 1; documents are named by their index. The status is 200 from the first event on. A
request that is refused before that gets an ordinary refusal.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from rank_k.server.access import Receive, Scope, Send, send_error
from rank_k.server.api_errors import ApiError
from rank_k.server.responses import to_json_bytes
from rank_k.server.service import ProgressListener
from rank_k.types import RankedHits, Ranking, StreamChunk, Window
from rank_k.window.base import WindowReport

_HEARTBEAT = 15.0  # seconds of silence after which a comment shows that somebody is there


class ProgressEvents(ProgressListener):
    """Takes what it hears, in the model's thread, to a queue of `loop`. Pieces wait together, one per window."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: list[tuple[str, dict[str, Any]]] = []
        self._events_ready = asyncio.Event()

    def on_window(self, round_number: int, number: int, window: Window) -> None:
        data = {"round": round_number + 1, "window": number + 1, "shown": _indices(window.doc_ids)}
        self._enqueue_threadsafe("window", data)

    def on_chunk(self, round_number: int, window: int, chunk: StreamChunk) -> None:
        data = {"round": round_number + 1, "window": window + 1, "reasoning": chunk.reasoning, "text": chunk.text}
        self._enqueue_threadsafe("trace", data)

    def on_result(self, round_number: int, window: int, report: WindowReport) -> None:
        usage = {"prompt_tokens": report.usage.prompt_tokens, "completion_tokens": report.usage.completion_tokens}
        for order in report.result.rankings:
            data = {
                "round": round_number + 1,
                "window": window + 1,
                "shown": _indices(report.result.window.doc_ids),
                "tiers": [_indices(tier) for tier in order.tiers],
                "ranked": order.is_valid,
                "repairs": dict(report.repairs),
                "usage": usage,
            }
            self._enqueue_threadsafe("order", data)

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        self._enqueue_threadsafe("ranking", {"round": round_number + 1, "indices": _indices(ranking.doc_ids)})

    async def next_batch(self) -> bytes:
        """All that has come since, as bytes to be sent; waits for something to come."""
        await self._events_ready.wait()
        self._events_ready.clear()
        ready, self._pending = self._pending, []
        return b"".join(format_event(kind, data) for kind, data in ready)

    def drain(self) -> bytes:
        ready, self._pending = self._pending, []
        return b"".join(format_event(kind, data) for kind, data in ready)

    def _enqueue_threadsafe(self, kind: str, data: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._enqueue, kind, data)

    def _enqueue(self, kind: str, data: dict[str, Any]) -> None:
        previous = self._pending[-1] if self._pending else ("", {})
        if kind == previous[0] == "trace" and all(previous[1][key] == data[key] for key in ("round", "window")):
            previous[1]["reasoning"] += data["reasoning"]
            previous[1]["text"] += data["text"]
        else:
            self._pending.append((kind, data))
        self._events_ready.set()


class EventStream:
    """An ASGI response. `work(events)` is the ranking; `finish` makes the result of it, `fail` a refusal of an error.

    The work is cancelled when the client goes away, or does not read for `stall_seconds`.
    """

    def __init__(
        self,
        work: Callable[[ProgressEvents], Awaitable[RankedHits]],
        finish: Callable[[RankedHits], Any],
        fail: Callable[[Exception], ApiError],
        stall_seconds: float,
    ) -> None:
        self._work = work
        self._finish = finish
        self._fail = fail
        self._stall_seconds = stall_seconds
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = ProgressEvents(asyncio.get_running_loop())
        work = asyncio.ensure_future(self._work(events))
        disconnected = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await self._forward_events(events, work, disconnected, send)
        except TimeoutError:
            pass  # nobody reads
        finally:
            disconnected.cancel()
            work.cancel()
            await asyncio.gather(work, disconnected, return_exceptions=True)

    async def _forward_events(
        self, events: ProgressEvents, work: asyncio.Future[RankedHits], disconnected: asyncio.Task[None], send: Send
    ) -> None:
        while not work.done():
            batch = asyncio.create_task(events.next_batch())
            try:
                waiters: set[asyncio.Future[Any]] = {work, disconnected, batch}
                await asyncio.wait(waiters, timeout=_HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            finally:
                has_events = batch.done() and not batch.cancelled()
                batch.cancel()
            if disconnected.done():
                return
            if has_events:
                await self._send(send, batch.result())
            elif not work.done():
                await self._send(send, b": waiting\n\n")
        await asyncio.sleep(0)  # what the model's thread has posted before the end
        try:
            final_event = format_event("result", self._finish(work.result()))
        except Exception as error:
            api_error = error if isinstance(error, ApiError) else self._fail(error)
            if not self._started:
                await send_error(send, api_error)
                return
            final_event = format_event("error", {"status": api_error.status, **api_error.body()})
        await self._send(send, events.drain() + final_event, more=False)

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        async with asyncio.timeout(self._stall_seconds):
            if not self._started:
                headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                self._started = True
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def wait_for_disconnect(receive: Receive) -> None:
    """Until the client has gone away (or has its whole answer). The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def format_event(kind: str, data: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + to_json_bytes(data) + b"\n\n"


def _indices(doc_ids: tuple[str, ...]) -> list[int]:
    return [int(doc_id) for doc_id in doc_ids]
