"""The HTTP API as an ASGI application: paths, request bodies and responses. `RerankService` does the ranking."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from rank_k.errors import MissingExtra, RankKError
from rank_k.optional_deps import load
from rank_k.server import demo_queries, journal_viewer, web_pages
from rank_k.server.access import DEFAULT_CORS_HEADERS, AccessMiddleware
from rank_k.server.api_errors import ApiError, invalid_field
from rank_k.server.config import AccessConfig
from rank_k.server.event_stream import EventStream
from rank_k.server.http_io import (
    App,
    Receive,
    Request,
    Response,
    RouteGroup,
    Scope,
    Send,
    client_disconnected,
    error_response,
    json_response,
    read_json,
    response,
    route,
    run_until,
    wait_for_disconnect,
)
from rank_k.server.openapi import build_openapi
from rank_k.server.schema import RerankRequest, TextsRequest, parse_request, rerank_response
from rank_k.server.service import ProgressListener, RerankService


def make_app(
    service: RerankService, access: AccessConfig = AccessConfig(), route_groups: Sequence[RouteGroup] = ()
) -> App:
    """Return the HTTP API and the web pages as an ASGI application.

    Args:
        service: The service that ranks.
        access: Who may use the application.
        route_groups: Additional routes, such as those of the pages *Compare* and *Judge*.

    Raises:
        MissingExtra: If the extra `serve` is not installed.
    """
    endpoints = _Endpoints(service)
    api_routes = [
        *(route(path, endpoints.rerank, "POST") for path in ("/v2/rerank", "/v1/rerank", "/rerank")),
        route("/v1/models", endpoints.models),
        route("/metrics", endpoints.metrics),
        route("/demo", endpoints.demo),
        _constant("/health", {"status": "ok"}),
        _constant("/openapi.json", build_openapi(service.limits, needs_key=bool(access.keys))),
        _constant("/page/rooms.json", [group.name for group in route_groups]),
    ]
    api = RouteGroup("api", api_routes, open_paths=frozenset({"/health"}))
    pages = web_pages.route_group(frozenset(group.name for group in route_groups))
    groups = (api, pages, journal_viewer.route_group(service.journal), *route_groups)
    return assemble_app(service, access, groups)


def assemble_app(
    service: RerankService,
    access: AccessConfig,
    groups: Sequence[RouteGroup],
    cors_headers: Mapping[str, str] = DEFAULT_CORS_HEADERS,
    lifespan: Any = None,
) -> App:
    """Return an ASGI application with the routes of `groups` behind the access control.

    Args:
        service: The service whose metrics count the requests, and which reports errors.
        access: Who may use the application.
        groups: The routes.
        cors_headers: CORS headers for the pages of allowed origins.
        lifespan: The lifespan of the application, as Starlette takes it.

    Raises:
        MissingExtra: If the extra `serve` is not installed.
    """
    http_error: Any = load("starlette.exceptions").HTTPException

    async def handle_error(request: Request, error: Any) -> Response:
        if isinstance(error, http_error):
            path, allowed_methods = request.url.path[:100], (error.headers or {}).get("Allow")
            message = f"{path!r} accepts only {allowed_methods}" if allowed_methods else f"unknown path {path!r}"
            error = ApiError(error.status_code, message, headers=error.headers)
        return error_response(service.report_error(error))

    routes = [one_route for group in groups for one_route in group.routes]
    handlers = dict.fromkeys((http_error, ApiError, RankKError, Exception), handle_error)
    application: Any = load("starlette.applications")
    starlette = application.Starlette(routes=routes, exception_handlers=handlers, lifespan=lifespan)
    starlette.router.redirect_slashes = False
    starlette.state.limits = service.limits
    return AccessMiddleware(
        _count_requests(starlette, service, frozenset(one_route.path for one_route in routes)),
        access,
        open_paths=frozenset().union(*(group.open_paths for group in groups)),
        private_paths=frozenset().union(*(group.private_paths for group in groups)),
        cors_headers=cors_headers,
    )


def _count_requests(app: App, service: RerankService, paths: frozenset[str]) -> App:
    """Return `app` with metrics that count its requests by path and status. Unknown paths are counted together."""

    async def counted_app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        started, status = time.monotonic(), 499  # the status stays 499 if the client disconnects before the response

        async def send_and_record(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await app(scope, receive, send_and_record)
        finally:
            path = scope["path"] if scope["path"] in paths else "other"
            service.metrics.record_request(path, status, time.monotonic() - started)

    return counted_app


def _constant(path: str, value: Any) -> Any:
    async def handle(request: Request) -> Response:
        return json_response(value)

    return route(path, handle)


class _Endpoints:
    def __init__(self, service: RerankService) -> None:
        self._service = service
        self._started = int(time.time())

    async def rerank(self, request: Request) -> Any:
        service, request_id = self._service, str(uuid4())
        body = await read_json(request)
        is_texts = request.url.path == "/rerank" and body.get("texts") is not None
        if is_texts and body.get("documents") is not None:
            raise invalid_field("texts", "give either texts or documents, not both")
        rerank_request = parse_request(TextsRequest if is_texts else RerankRequest, body, service.limits)

        async def rank(listener: ProgressListener) -> Any:
            hits = await service.rank(rerank_request, request.state.client, request_id, listener)
            return rerank_response(rerank_request, hits, service.model, request_id)

        if isinstance(rerank_request, RerankRequest) and rerank_request.stream:
            return EventStream(rank, service.report_error)
        work = rank(ProgressListener())
        return json_response(await run_until(wait_for_disconnect(request.receive), work, client_disconnected()))

    async def models(self, request: Request) -> Response:
        """Return the list of models: the model of this server, or an empty list. OpenAI's API has no field `method`."""
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
