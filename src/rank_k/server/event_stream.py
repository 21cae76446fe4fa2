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
from rank_k.window.listwise import WindowReport

_HEARTBEAT = 15.0  # seconds of silence after which a comment shows that somebody is there


class ProgressEvents(ProgressListener):
    """Takes what it hears, in the model's thread, to a queue of `loop`. Pieces wait together, one per window."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: list[tuple[str, dict[str, Any]]] = []
        self._news = asyncio.Event()

    def on_window(self, round_number: int, number: int, window: Window) -> None:
        told = {"round": round_number + 1, "window": number + 1, "shown": _indices(window.doc_ids)}
        self._post("window", told)

    def on_chunk(self, round_number: int, window: int, piece: StreamChunk) -> None:
        told = {"round": round_number + 1, "window": window + 1, "reasoning": piece.reasoning, "text": piece.text}
        self._post("trace", told)

    def on_result(self, round_number: int, window: int, asked: WindowReport) -> None:
        usage = {"prompt_tokens": asked.usage.prompt_tokens, "completion_tokens": asked.usage.completion_tokens}
        for order in asked.result.rankings:
            told = {
                "round": round_number + 1,
                "window": window + 1,
                "shown": _indices(asked.result.window.doc_ids),
                "tiers": [_indices(tier) for tier in order.tiers],
                "ranked": order.is_valid,
                "repairs": dict(asked.repairs),
                "usage": usage,
            }
            self._post("order", told)

    def on_ranking(self, round_number: int, ranking: Ranking) -> None:
        self._post("ranking", {"round": round_number + 1, "indices": _indices(ranking.doc_ids)})

    async def next(self) -> bytes:
        """All that has come since, as bytes to be sent; waits for something to come."""
        await self._news.wait()
        self._news.clear()
        ready, self._pending = self._pending, []
        return b"".join(format_event(kind, told) for kind, told in ready)

    def rest(self) -> bytes:
        ready, self._pending = self._pending, []
        return b"".join(format_event(kind, told) for kind, told in ready)

    def _post(self, kind: str, told: dict[str, Any]) -> None:
        self._loop.call_soon_threadsafe(self._take, kind, told)

    def _take(self, kind: str, told: dict[str, Any]) -> None:
        last = self._pending[-1] if self._pending else ("", {})
        if kind == last[0] == "trace" and all(last[1][of] == told[of] for of in ("round", "window")):
            last[1]["reasoning"] += told["reasoning"]
            last[1]["text"] += told["text"]
        else:
            self._pending.append((kind, told))
        self._news.set()


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
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        events = ProgressEvents(asyncio.get_running_loop())
        work = asyncio.ensure_future(self._work(events))
        gone = asyncio.create_task(wait_for_disconnect(receive))
        try:
            await self._pass_on(events, work, gone, send)
        except TimeoutError:
            pass  # nobody reads
        finally:
            gone.cancel()
            work.cancel()
            await asyncio.gather(work, gone, return_exceptions=True)

    async def _pass_on(
        self, events: ProgressEvents, work: asyncio.Future[RankedHits], gone: asyncio.Task[None], send: Send
    ) -> None:
        while not work.done():
            news = asyncio.create_task(events.next())
            try:
                parts: set[asyncio.Future[Any]] = {work, gone, news}
                await asyncio.wait(parts, timeout=_HEARTBEAT, return_when=asyncio.FIRST_COMPLETED)
            finally:
                came = news.done() and not news.cancelled()
                news.cancel()
            if gone.done():
                return
            if came:
                await self._send(send, news.result())
            elif not work.done():
                await self._send(send, b": waiting\n\n")
        await asyncio.sleep(0)  # what the model's thread has posted before the end
        try:
            last = format_event("result", self._finish(work.result()))
        except Exception as error:
            refusal = error if isinstance(error, ApiError) else self._fail(error)
            if not self._begun:
                await send_error(send, refusal)
                return
            last = format_event("error", {"status": refusal.status, **refusal.body()})
        await self._send(send, events.rest() + last, more=False)

    async def _send(self, send: Send, body: bytes, more: bool = True) -> None:
        async with asyncio.timeout(self._stall_seconds):
            if not self._begun:
                headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                self._begun = True
            await send({"type": "http.response.body", "body": body, "more_body": more})


async def wait_for_disconnect(receive: Receive) -> None:
    """Until the client has gone away (or has its whole answer). The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def format_event(kind: str, told: Any) -> bytes:
    return b"event: " + kind.encode() + b"\ndata: " + to_json_bytes(told) + b"\n\n"


def _indices(doc_ids: tuple[str, ...]) -> list[int]:
    return [int(doc_id) for doc_id in doc_ids]
