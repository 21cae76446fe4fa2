"""The HTTP API as an ASGI application: paths, bodies and responses. The service does the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from rank_k.errors import MissingExtra
from rank_k.optional_deps import load
from rank_k.server import demo_queries, journal_routes, web_pages
from rank_k.server.access import OPEN_PATHS, AccessMiddleware
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.config import AccessConfig
from rank_k.server.event_stream import EventStream
from rank_k.server.http_io import (
    App,
    Receive,
    Scope,
    Send,
    cancel_on_disconnect,
    error_response,
    json_object,
    json_response,
    read_body,
    response,
    wait_for_disconnect,
)
from rank_k.server.openapi import build_openapi
from rank_k.server.schema import RerankRequest, TextsRequest, parse_request, rerank_response
from rank_k.server.service import ProgressListener, RerankService

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


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
    """Return the application behind its access control. Raises `MissingExtra`."""
    route: Any = load("starlette.routing").Route
    endpoints = _Endpoints(service)
    routes = [
        *(route(path, endpoints.rerank, methods=["POST"]) for path in ("/v2/rerank", "/v1/rerank", "/rerank")),
        route("/v1/models", endpoints.models),
        route("/metrics", endpoints.metrics),
        route("/demo", endpoints.demo),
        route("/health", _constant({"status": "ok"})),
        route("/openapi.json", _constant(build_openapi(service.limits, needs_key=bool(access.keys)))),
        route("/page/rooms.json", _constant([group.name for group in route_groups])),
        *journal_routes.routes(service.journal, access),
        *web_pages.routes(),
    ]
    for group in route_groups:
        routes += group.routes(service, access)
    http_error = load("starlette.exceptions").HTTPException
    handlers = dict.fromkeys((http_error, ApiError, Exception), endpoints.handle_error)
    starlette = load("starlette.applications").Starlette(routes=routes, exception_handlers=handlers)
    starlette.router.redirect_slashes = False
    open_paths = OPEN_PATHS.union(web_pages.paths(), *(group.open_paths for group in route_groups))
    paths = frozenset(known_route.path for known_route in routes)
    return AccessMiddleware(_MeteredApp(starlette, service, paths), access, open_paths)


def _constant(value: Any) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return json_response(value)

    return handle


class _Endpoints:
    def __init__(self, service: RerankService) -> None:
        self._service = service
        self._started = int(time.time())

    async def rerank(self, request: Request) -> Any:
        service, request_id, client = self._service, str(uuid4()), request.scope["state"]["client"]
        body = json_object(await read_body(request, service.limits))
        is_texts = request.url.path == "/rerank" and body.get("texts") is not None
        if is_texts and body.get("documents") is not None:
            raise invalid_field("texts", "give either texts or documents")
        rerank_request = parse_request(TextsRequest if is_texts else RerankRequest, body, service.limits)

        async def rank(listener: ProgressListener) -> Any:
            hits = await service.rank(rerank_request, client, request_id, listener)
            return rerank_response(rerank_request, hits, service.model, request_id)

        if isinstance(rerank_request, RerankRequest) and rerank_request.stream:
            return EventStream(rank, service.report_error)
        work = rank(ProgressListener())
        return json_response(await cancel_on_disconnect(wait_for_disconnect(request.receive), work))

    async def models(self, request: Request) -> Response:
        """Return the one model there is, if there is one; `method` is an addition of Rank-K."""
        service = self._service
        card = {"id": service.model, "object": "model", "created": self._started, "owned_by": "rank-k"}
        return json_response({"object": "list", "data": [{**card, "method": service.method}] if service.method else []})

    async def metrics(self, request: Request) -> Response:
        return response(self._service.metrics.render(), 200, {"Content-Type": self._service.metrics.content_type})

    async def demo(self, request: Request) -> Response:
        try:
            return json_response({"questions": await asyncio.to_thread(demo_queries.demo_queries)})
        except MissingExtra as error:
            return json_response({"questions": [], "missing": error.remedy})

    async def handle_error(self, request: Request, error: Any) -> Response:
        """Return the response to any error. A fault of this program is reported in full, but not to the client."""
        if isinstance(error, ApiError):
            return error_response(error)
        if isinstance(error, load("starlette.exceptions").HTTPException):
            message = f"there is no {request.method} {request.url.path[:100]!r} here"
            return error_response(ApiError(error.status_code, message, headers=error.headers))
        return error_response(self._service.report_error(error))


class _MeteredApp:
    """Counts requests by path and status. Paths that do not exist count as one."""

    def __init__(self, app: App, service: RerankService, paths: frozenset[str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 499  # the client went away before anything was sent

        async def send_and_record(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, send_and_record)
        except Exception:
            if status not in (499, 500):  # else `handle_error` has reported and answered it
                raise
            status = 500
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._service.metrics.record_request(path, status, time.monotonic() - started)
