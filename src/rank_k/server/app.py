"""The HTTP API as an ASGI application: paths, bodies and answers. What is done behind them is the desk's business."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from rank_k.errors import MissingExtra
from rank_k.optional_deps import load
from rank_k.server import demo_queries, web_pages
from rank_k.server.access import OPEN_PATHS, AccessMiddleware, App, Receive, Scope, Send
from rank_k.server.api_errors import ApiError
from rank_k.server.config import AccessConfig
from rank_k.server.event_stream import EventStream, ProgressEvents, wait_for_disconnect
from rank_k.server.http_io import client_disconnected, json_response, read_body, response
from rank_k.server.journal_routes import JournalRoutes
from rank_k.server.openapi import document
from rank_k.server.requests import RerankRequest, parse_rerank_request
from rank_k.server.responses import ranking_response, to_json_bytes
from rank_k.server.service import RerankService
from rank_k.types import RankedHits

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

RERANK_PATHS = ("/v2/rerank", "/v1/rerank", "/rerank")


class RouteGroup(Protocol):
    """Something else that is served behind the same door. Its page asks whether it is there by its `name`."""

    @property
    def name(self) -> str: ...

    @property
    def open_paths(self) -> frozenset[str]:
        """Those that need no key."""

    def routes(self, desk: RerankService, doors: AccessConfig) -> list[Any]:
        """Starlette's. What goes wrong in there the desk is told."""


def make_app(desk: RerankService, doors: AccessConfig = AccessConfig(), rooms: Sequence[RouteGroup] = ()) -> App:
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
        routing.Route("/demo", endpoints.demo),
        *JournalRoutes(desk.journal, doors, json_response).routes(),
        *web_pages.routes(),
        routing.Route("/page/rooms.json", _RouteGroups(rooms).answer),
        *(route for room in rooms for route in room.routes(desk, doors)),
    ]
    starlette = load("starlette.applications").Starlette(
        routes=routes,
        exception_handlers={
            exceptions.HTTPException: _not_found,
            ApiError: _refused,
            Exception: endpoints.broken,
        },
    )
    starlette.router.redirect_slashes = False
    counted = _MeteredApp(starlette, desk, frozenset(route.path for route in routes))
    return AccessMiddleware(counted, doors, OPEN_PATHS.union(web_pages.paths(), *(room.open_paths for room in rooms)))


class _RouteGroups:
    def __init__(self, rooms: Sequence[RouteGroup]) -> None:
        self._names = [room.name for room in rooms]

    async def answer(self, request: Request) -> Response:
        return json_response(self._names)


class _Endpoints:
    def __init__(self, desk: RerankService, openapi: Mapping[str, Any]) -> None:
        self._desk = desk
        self._openapi = to_json_bytes(openapi)
        self._started = int(time.time())

    async def rerank(self, request: Request) -> Any:
        desk = self._desk
        raw = await read_body(request, desk.limits.body, desk.limits.body_seconds)
        asked = parse_rerank_request(raw, desk.limits, texts_allowed=request.url.path == "/rerank")
        client = request.scope["state"]["client"]
        if asked.stream:
            return self._stream(asked, client)
        name = str(uuid4())
        hits = await cancel_on_disconnect(wait_for_disconnect(request.receive), desk.rank(asked, client, name))
        return json_response(ranking_response(asked, hits, desk.model, name))

    def _stream(self, asked: RerankRequest, client: str) -> EventStream:
        desk, name = self._desk, str(uuid4())

        async def work(events: ProgressEvents) -> RankedHits:
            return await desk.rank(asked, client, name, events)

        def finish(hits: RankedHits) -> Any:
            return ranking_response(asked, hits, desk.model, name)

        return EventStream(work, finish, desk.failed, desk.limits.stall_seconds)

    async def models(self, request: Request) -> Response:
        """The one model there is, if there is one; `method` is an addition of Rank-K."""
        desk = self._desk
        card = {"id": desk.model, "object": "model", "created": self._started, "owned_by": "rank-k"}
        return json_response({"object": "list", "data": [{**card, "method": desk.method}] if desk.method else []})

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return response(self._desk.metrics.text(), 200, {"Content-Type": self._desk.metrics.content_type})

    async def openapi(self, request: Request) -> Response:
        return response(self._openapi, 200, {"Content-Type": "application/json"})

    async def demo(self, request: Request) -> Response:
        try:
            return json_response({"questions": await asyncio.to_thread(demo_queries.demo_queries)})
        except MissingExtra as error:
            return json_response({"questions": [], "missing": error.remedy})

    async def broken(self, request: Request, error: Exception) -> Response:
        """A fault of this program. Whoever runs it hears of it; the client does not see its insides."""
        return _refusal(self._desk.failed(error))


class _MeteredApp:
    """Counts requests by path and status. Paths that do not exist are one."""

    def __init__(self, app: App, desk: RerankService, paths: frozenset[str]) -> None:
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


async def cancel_on_disconnect(gone: Coroutine[Any, Any, Any], work: Awaitable[RankedHits]) -> RankedHits:
    """The result of `work`, which is cancelled when the client goes away: when `gone` ends. Raises a `Refusal`."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.create_task(gone)
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise client_disconnected()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _refusal(error)


async def _not_found(request: Request, error: Any) -> Response:
    """404 and 405, as JSON too."""
    said = f"there is no {request.method} {request.url.path[:100]!r} here" if error.status_code < 500 else "no answer"
    return _refusal(ApiError(error.status_code, said, headers=error.headers))


def _refusal(refusal: ApiError) -> Response:
    return json_response(refusal.body(), refusal.status, refusal.headers)
