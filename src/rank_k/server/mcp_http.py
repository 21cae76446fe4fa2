"""The tool over streamable HTTP at `/mcp`, behind the same access control as the HTTP API and with the same timeouts.

There is no stream for a GET, which the protocol leaves open: the server has nothing to say that no call has asked for.
Nothing is kept for a client that comes back after its connection broke, so the work for its call ends with it.
"""

from __future__ import annotations

import asyncio
from typing import Any

from rank_k.optional_deps import load
from rank_k.server.access import AccessMiddleware
from rank_k.server.api_errors import ApiError
from rank_k.server.config import AccessConfig, Limits
from rank_k.server.http_io import App, Receive, Scope, Send, error_response, read_body
from rank_k.server.mcp import DISCONNECT_EVENT, make_mcp_server
from rank_k.server.service import RerankService

PATH = "/mcp"

_ALLOWED_METHODS = "POST, DELETE"
_CORS_HEADERS = {
    "Access-Control-Allow-Methods": _ALLOWED_METHODS,
    "Access-Control-Allow-Headers": "Authorization, Content-Type, Mcp-Session-Id, Mcp-Protocol-Version, Mcp-Method,"
    " Mcp-Name",
    "Access-Control-Expose-Headers": "mcp-session-id",
}
_IDLE_SECONDS = 30 * 60.0  # after which a session that was not ended counts as left


def make_mcp_app(service: RerankService, access: AccessConfig = AccessConfig()) -> App:
    """Return the application behind its access control. Raises `MissingExtra`."""
    security: Any = load("mcp.server.transport_security").TransportSecuritySettings
    app = make_mcp_server(service).streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=service.limits.max_body,
        session_idle_timeout=_IDLE_SECONDS,
        max_sessions=service.limits.connections,
        transport_security=security(enable_dns_rebinding_protection=False),  # `AccessMiddleware` does that
    )
    return AccessMiddleware(_CompleteRequests(app, service.limits), access, allowed=_CORS_HEADERS)


class _CompleteRequests:
    """Passes on requests whose whole body has arrived, and notices when their client disconnects."""

    def __init__(self, app: App, limits: Limits) -> None:
        self._app = app
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read_body(scope, receive)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
            return
        disconnected = scope["state"][DISCONNECT_EVENT] = asyncio.Event()
        messages: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_body_first() -> Any:
            message = messages.pop() if messages else await receive()
            if message["type"] == "http.disconnect":
                disconnected.set()
            return message

        await self._app(scope, receive_body_first, send)

    async def _read_body(self, scope: Scope, receive: Receive) -> bytes:
        if scope["path"] != PATH:
            raise ApiError(404, f"there is nothing here but {PATH}")
        if scope["method"] not in _ALLOWED_METHODS.split(", "):
            raise ApiError(405, f"there is no {scope['method'][:20]} here", headers={"Allow": _ALLOWED_METHODS})
        request: Any = load("starlette.requests").Request(scope, receive)
        return await read_body(request, self._limits)
