"""The tool over streamable HTTP at `/mcp`, behind the same access control as the HTTP API and with the same timeouts.

There is no stream for a GET, which the protocol leaves open: the server has nothing to say that no call has asked for.
Nothing is kept for a client that comes back after its connection broke, so the work for its call ends with it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from rank_k.optional_deps import load
from rank_k.server.access import AccessMiddleware, App, Receive, Scope, Send, send_error
from rank_k.server.api_errors import ApiError
from rank_k.server.config import AccessConfig, Limits
from rank_k.server.http_io import read_body
from rank_k.server.mcp import DISCONNECT_EVENT, make_mcp_server
from rank_k.server.service import RerankService

PATH = "/mcp"

_METHODS = ("POST", "DELETE")
_HEADERS = "Authorization, Content-Type, Mcp-Session-Id, Mcp-Protocol-Version, Mcp-Method, Mcp-Name"
_EXPOSE_HEADERS = (b"access-control-expose-headers", b"mcp-session-id")
_IDLE_SECONDS = 30 * 60.0  # after which a session that was not ended counts as left


def make_mcp_app(service: RerankService, access: AccessConfig = AccessConfig()) -> App:
    """The application, its guard before it. Raises `MissingExtra`."""
    security: Any = load("mcp.server.transport_security").TransportSecuritySettings
    # Streams must not end at the first signal: the service finishes what is under way, and its answers end the streams.
    load("sse_starlette.sse").AppStatus.disable_automatic_graceful_drain()
    app = make_mcp_server(service).streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=service.limits.body,
        session_idle_timeout=_IDLE_SECONDS,
        max_sessions=service.limits.connections,
        transport_security=security(enable_dns_rebinding_protection=False),  # the guard does that, and by --allow-host
    )
    return AccessMiddleware(_SessionAccess(app, service.limits), access, methods=", ".join(_METHODS), headers=_HEADERS)


class _SessionAccess:
    """Takes a whole request or none, and notices when its client goes away."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read_admitted_body(scope, receive)
        except ApiError as api_error:
            await send_error(send, api_error)
            return
        disconnected = scope["state"][DISCONNECT_EVENT] = asyncio.Event()
        delivered = False

        async def receive_once() -> Any:
            nonlocal delivered
            if not delivered:
                delivered = True
                return {"type": "http.request", "body": body, "more_body": False}
            message = await receive()
            if message["type"] == "http.disconnect":
                disconnected.set()
            return message

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), _EXPOSE_HEADERS]
            await send(message)

        await self._app(scope, receive_once, send_with_headers)

    async def _read_admitted_body(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body. Raises `ApiError`."""
        method, path = scope["method"], scope["path"]
        if path != PATH:
            raise ApiError(404, f"there is nothing here but {PATH}")
        if method not in _METHODS:
            raise ApiError(405, f"there is no {method[:20]} here", headers={"Allow": ", ".join(_METHODS)})
        request: Any = load("starlette.requests").Request(scope, receive)
        return await read_body(request, self._limits.body, self._limits.body_seconds)
