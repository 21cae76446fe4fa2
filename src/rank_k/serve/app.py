"""The HTTP API as an ASGI application: paths, bodies and answers. What is done behind them is the desk's business."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any

from rank_k.extras import load
from rank_k.hits import RankedHits
from rank_k.serve.answers import answer, encoded
from rank_k.serve.desk import Desk
from rank_k.serve.guard import App, Guard, Receive, Scope, Send
from rank_k.serve.openapi import document
from rank_k.serve.refusals import Refusal
from rank_k.serve.requests import Wanted, wanted
from rank_k.serve.rules import Doors
from rank_k.serve.streaming import Events, EventStream, until_gone

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

RERANK_PATHS = ("/v2/rerank", "/v1/rerank", "/rerank")


def make_app(desk: Desk, doors: Doors = Doors()) -> App:
    """The application, its guard before it. Raises `MissingExtra`."""
    routing: Any = load("starlette.routing")
    exceptions: Any = load("starlette.exceptions")
    endpoints = _Endpoints(desk, document(desk.limits, needs_key=bool(doors.keys)))
    routes = [routing.Route(path, endpoints.rerank, methods=["POST"]) for path in RERANK_PATHS]
    routes += [
        routing.Route("/v1/models", endpoints.models),
        routing.Route("/health", endpoints.health),
        routing.Route("/metrics", endpoints.metrics),
        routing.Route("/openapi.json", endpoints.openapi),
    ]
    starlette = load("starlette.applications").Starlette(
        routes=routes,
        exception_handlers={
            exceptions.HTTPException: _not_found,
            Refusal: _refused,
            Exception: endpoints.broken,
        },
    )
    starlette.router.redirect_slashes = False
    return Guard(_Counted(starlette, desk, frozenset(route.path for route in routes)), doors)


class _Endpoints:
    def __init__(self, desk: Desk, openapi: Mapping[str, Any]) -> None:
        self._desk = desk
        self._openapi = encoded(openapi)
        self._started = int(time.time())

    async def rerank(self, request: Request) -> Any:
        desk = self._desk
        raw = await read_body(request, desk.limits.body, desk.limits.body_seconds)
        asked = wanted(raw, desk.limits, texts_allowed=request.url.path == "/rerank")
        client = request.scope["state"]["client"]
        if asked.stream:
            return self._stream(asked, client)
        hits = await while_there(until_gone(request.receive), desk.rank(asked, client))
        return _json(answer(asked, hits, desk.model))

    def _stream(self, asked: Wanted, client: str) -> EventStream:
        desk = self._desk

        async def work(events: Events) -> RankedHits:
            return await desk.rank(asked, client, events)

        return EventStream(work, lambda hits: answer(asked, hits, desk.model), desk.failed, desk.limits.stall_seconds)

    async def models(self, request: Request) -> Response:
        card = {"id": self._desk.model, "object": "model", "created": self._started, "owned_by": "rank-k"}
        return _json({"object": "list", "data": [card]})

    async def health(self, request: Request) -> Response:
        if self._desk.admission.closed:
            return _json({"status": "stopping"}, 503)
        return _json({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return _response(self._desk.metrics.text(), 200, {"Content-Type": self._desk.metrics.content_type})

    async def openapi(self, request: Request) -> Response:
        return _response(self._openapi, 200, {"Content-Type": "application/json"})

    async def broken(self, request: Request, error: Exception) -> Response:
        """A fault of this program. Whoever runs it hears of it; the client does not see its insides."""
        return _refusal(self._desk.failed(error))


class _Counted:
    """Counts requests by path and status. Paths that do not exist are one."""

    def __init__(self, app: App, desk: Desk, paths: frozenset[str]) -> None:
        self._app = app
        self._desk = desk
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 499  # the client went away before anything was answered

        async def sending(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        except Exception:
            if status in (499, 500):
                status = 500  # told already: by `broken`, and to who runs the server
            else:
                raise
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._desk.metrics.answered(path, status, time.monotonic() - started)


async def read_body(request: Request, most: int, seconds: float) -> bytes:
    """The request's body, no longer than `most` bytes and not slower than `seconds`. Raises a `Refusal`."""
    too_large = Refusal(413, f"the body has more than {most:,} bytes", headers={"Connection": "close"})
    told = request.headers.get("content-length", "")
    if told.isdecimal() and int(told[:20]) > most:
        raise too_large
    gone: type[Exception] = load("starlette.requests").ClientDisconnect
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > most:
                    raise too_large
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {seconds:g} s", headers={"Connection": "close"}) from None
    except gone:
        raise _left() from None
    return bytes(body)


async def while_there(gone: Coroutine[Any, Any, Any], work: Awaitable[RankedHits]) -> RankedHits:
    """The result of `work`, which is cancelled when the client goes away: when `gone` ends. Raises a `Refusal`."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone)
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise _left()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def _left() -> Refusal:
    return Refusal(499, "the client went away")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refusal)
    return _refusal(error)


async def _not_found(request: Request, error: Any) -> Response:
    """404 and 405, as JSON too."""
    said = f"there is no {request.method} {request.url.path[:100]!r} here" if error.status_code < 500 else "no answer"
    return _refusal(Refusal(error.status_code, said, headers=error.headers))


def _refusal(refusal: Refusal) -> Response:
    return _json(refusal.body(), refusal.status, refusal.headers)


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return _response(encoded(value), status, {**(headers or {}), "Content-Type": "application/json"})


def _response(body: bytes, status: int, headers: Mapping[str, str]) -> Response:
    make: Callable[..., Response] = load("starlette.responses").Response
    return make(body, status, headers)
