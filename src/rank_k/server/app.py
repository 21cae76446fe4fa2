"""The HTTP API as an ASGI application: paths, bodies and answers. The service does the work."""

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
from rank_k.server.openapi import build_openapi
from rank_k.server.requests import RerankRequest, parse_rerank_request
from rank_k.server.responses import ranking_response, to_json_bytes
from rank_k.server.service import RerankService
from rank_k.types import RankedHits

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

RERANK_PATHS = ("/v2/rerank", "/v1/rerank", "/rerank")


class RouteGroup(Protocol):
    """Further routes behind the same access control. Their page asks by `name` whether they are there."""

    @property
    def name(self) -> str: ...

    @property
    def open_paths(self) -> frozenset[str]:
        """Those that need no key."""

    def routes(self, service: RerankService, access: AccessConfig) -> list[Any]:
        """Return Starlette routes. They report their errors to `service`."""


def make_app(
    service: RerankService, access: AccessConfig = AccessConfig(), route_groups: Sequence[RouteGroup] = ()
) -> App:
    """The application, its guard before it. Raises `MissingExtra`."""
    routing: Any = load("starlette.routing")
    exceptions: Any = load("starlette.exceptions")
    endpoints = _Endpoints(service, build_openapi(service.limits, needs_key=bool(access.keys)))
    routes = [routing.Route(path, endpoints.rerank, methods=["POST"]) for path in RERANK_PATHS]
    routes += [
        routing.Route("/v1/models", endpoints.models),
        routing.Route("/health", endpoints.health),
        routing.Route("/metrics", endpoints.metrics),
        routing.Route("/openapi.json", endpoints.openapi),
        routing.Route("/demo", endpoints.demo),
        *JournalRoutes(service.journal, access, json_response).routes(),
        *web_pages.routes(),
        routing.Route("/page/rooms.json", _RouteGroupNames(route_groups).handle),
        *(route for group in route_groups for route in group.routes(service, access)),
    ]
    starlette = load("starlette.applications").Starlette(
        routes=routes,
        exception_handlers={
            exceptions.HTTPException: _handle_http_error,
            ApiError: _handle_api_error,
            Exception: endpoints.handle_exception,
        },
    )
    starlette.router.redirect_slashes = False
    metered_app = _MeteredApp(starlette, service, frozenset(route.path for route in routes))
    return AccessMiddleware(
        metered_app, access, OPEN_PATHS.union(web_pages.paths(), *(group.open_paths for group in route_groups))
    )


class _RouteGroupNames:
    def __init__(self, route_groups: Sequence[RouteGroup]) -> None:
        self._names = [group.name for group in route_groups]

    async def handle(self, request: Request) -> Response:
        return json_response(self._names)


class _Endpoints:
    def __init__(self, service: RerankService, openapi: Mapping[str, Any]) -> None:
        self._service = service
        self._openapi = to_json_bytes(openapi)
        self._started = int(time.time())

    async def rerank(self, request: Request) -> Any:
        service = self._service
        raw = await read_body(request, service.limits.body, service.limits.body_seconds)
        rerank_request = parse_rerank_request(raw, service.limits, texts_allowed=request.url.path == "/rerank")
        client = request.scope["state"]["client"]
        if rerank_request.stream:
            return self._stream(rerank_request, client)
        request_id = str(uuid4())
        hits = await cancel_on_disconnect(
            wait_for_disconnect(request.receive), service.rank(rerank_request, client, request_id)
        )
        return json_response(ranking_response(rerank_request, hits, service.model, request_id))

    def _stream(self, rerank_request: RerankRequest, client: str) -> EventStream:
        service, request_id = self._service, str(uuid4())

        async def work(events: ProgressEvents) -> RankedHits:
            return await service.rank(rerank_request, client, request_id, events)

        def finish(hits: RankedHits) -> Any:
            return ranking_response(rerank_request, hits, service.model, request_id)

        return EventStream(work, finish, service.report_error, service.limits.stall_seconds)

    async def models(self, request: Request) -> Response:
        """The one model there is, if there is one; `method` is an addition of Rank-K."""
        service = self._service
        card = {"id": service.model, "object": "model", "created": self._started, "owned_by": "rank-k"}
        return json_response({"object": "list", "data": [{**card, "method": service.method}] if service.method else []})

    async def health(self, request: Request) -> Response:
        return json_response({"status": "ok"})

    async def metrics(self, request: Request) -> Response:
        return response(self._service.metrics.render(), 200, {"Content-Type": self._service.metrics.content_type})

    async def openapi(self, request: Request) -> Response:
        return response(self._openapi, 200, {"Content-Type": "application/json"})

    async def demo(self, request: Request) -> Response:
        try:
            return json_response({"questions": await asyncio.to_thread(demo_queries.demo_queries)})
        except MissingExtra as error:
            return json_response({"questions": [], "missing": error.remedy})

    async def handle_exception(self, request: Request, error: Exception) -> Response:
        """A fault of this program. Whoever runs it hears of it; the client does not see its insides."""
        return _error_response(self._service.report_error(error))


class _MeteredApp:
    """Counts requests by path and status. Paths that do not exist are one."""

    def __init__(self, app: App, service: RerankService, paths: frozenset[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 499  # the client went away before anything was answered

        async def send_and_record(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except Exception:
            if status in (499, 500):
                status = 500  # told already: by `broken`, and to who runs the server
            else:
                raise
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.record_request(path, status, time.monotonic() - started)


async def cancel_on_disconnect(disconnected: Coroutine[Any, Any, Any], work: Awaitable[RankedHits]) -> RankedHits:
    """Return the result of `work`, which is cancelled when the client goes away, that is, when `disconnected` ends.

    Raises `ApiError`.
    """
    work_task = asyncio.ensure_future(work)
    disconnect_task = asyncio.create_task(disconnected)
    try:
        await asyncio.wait({work_task, disconnect_task}, return_when=asyncio.FIRST_COMPLETED)
        if not work_task.done():
            raise client_disconnected()
        return work_task.result()
    finally:
        work_task.cancel()
        disconnect_task.cancel()
        await asyncio.gather(work_task, disconnect_task, return_exceptions=True)


async def _handle_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error)


async def _handle_http_error(request: Request, error: Any) -> Response:
    """404 and 405, as JSON too."""
    message = (
        f"there is no {request.method} {request.url.path[:100]!r} here" if error.status_code < 500 else "no answer"
    )
    return _error_response(ApiError(error.status_code, message, headers=error.headers))


def _error_response(error: ApiError) -> Response:
    return json_response(error.body(), error.status, error.headers)
