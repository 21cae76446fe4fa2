"""Access control: who may use the server, checked before anything else is read.

Loopback is not trust: any page that a browser shows can send requests there, under its own name (an origin) or under
a name that it made point here (a rebound host). So the names by which the server is called are a list, pages of other
origins are turned away, and what is posted must say that it is JSON, which no page can do without asking first.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from ipaddress import ip_address
from typing import Any

from rank_k.server.api_errors import ApiError
from rank_k.server.config import LOOPBACK_NAMES, AccessConfig, host_name, is_loopback
from rank_k.server.responses import to_json_bytes

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health"})
"""What needs no key: it tells nothing."""

_COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AccessMiddleware:
    """An ASGI application before another. Leaves who asks, a key's digest or an address, in the scope's state.

    `methods` and `headers`: what pages that are let in may send. `open_paths`: what needs no key.
    """

    def __init__(
        self,
        app: App,
        access: AccessConfig,
        open_paths: frozenset[str] = OPEN_PATHS,
        *,
        methods: str = "GET, POST",
        headers: str = "Authorization, Content-Type",
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._allowed = {"Access-Control-Allow-Methods": methods, "Access-Control-Allow-Headers": headers}
        self._host_names = frozenset(map(host_name, {*access.hosts, access.host})) | LOOPBACK_NAMES
        self._accepts_any_address = not is_loopback(access.host)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in access.origins)
        self._key_digests = tuple(_digest(key.encode()) for key in access.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        host, origin = headers.get("host", ""), headers.get("origin")
        extra_headers = dict(_COMMON_HEADERS)
        try:
            self._check_host(host)
            if origin is not None and self._is_allowed_origin(origin, host):
                extra_headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
                extra_headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                if scope["method"] == "OPTIONS":
                    await _answer_preflight(send, extra_headers | self._allowed)
                    return
            client = self._identify_client(scope, headers.get("authorization", ""))
            if scope["method"] == "POST":
                _check_content_type(headers.get("content-type", ""))
        except ApiError as api_error:
            await send_error(send, api_error, extra_headers)
            return
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, _with_headers(send, extra_headers))

    def _check_host(self, host: str) -> None:
        """Raise unless the server is called by a name it has. An address cannot be made to point elsewhere."""
        name = host_name(host)
        if name in self._host_names or (self._accepts_any_address and _is_address(name)):
            return
        raise ApiError(421, "this server is not known under the name in the Host header; see --allow-host")

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        """Whether the page is one of those allowed by name; False for the server's own. Raises for all others."""
        origin = origin.lower()
        if origin in self._origins:
            return True
        scheme, _, authority = origin.partition("://")
        if scheme in ("http", "https") and authority == host.lower():
            return False
        raise ApiError(403, "pages of this origin may not use this server; see --allow-origin")

    def _identify_client(self, scope: Scope, authorization: str) -> str:
        address = scope.get("client")
        address_label = f"address {address[0]}" if address else "address unknown"
        if not self._key_digests or scope["path"] in self._open_paths:
            return address_label
        scheme, _, key = authorization.partition(" ")
        digest = _digest(key.strip().encode("latin-1", "replace"))
        matches = [
            hmac.compare_digest(digest, key_digest) for key_digest in self._key_digests
        ]  # all of them: the time tells nothing
        if scheme.lower() != "bearer" or not any(matches):
            raise ApiError(401, "a key is needed: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"})
        return f"key {digest.hex()}"


async def send_error(send: Send, error: ApiError, headers: MutableMapping[str, str] | None = None) -> None:
    """Answer with `error`, as JSON."""
    body = to_json_bytes(error.body())
    response_headers = {
        **(headers or {}),
        "Content-Type": "application/json",
        **error.headers,
        "Content-Length": str(len(body)),
    }
    await send(
        {"type": "http.response.start", "status": error.status, "headers": _encode_headers(response_headers.items())}
    )
    await send({"type": "http.response.body", "body": body})


async def _answer_preflight(send: Send, headers: MutableMapping[str, str]) -> None:
    response_headers = {**headers, "Access-Control-Max-Age": "600"}
    await send({"type": "http.response.start", "status": 204, "headers": _encode_headers(response_headers.items())})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, headers: MutableMapping[str, str]) -> Send:
    encoded = _encode_headers(headers.items())

    async def send_with_headers(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *encoded]
        await send(message)

    return send_with_headers


def _encode_headers(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _check_content_type(value: str) -> None:
    media_type, _, parameters = value.partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "").partition("charset=")[2] or "utf-8"
    if media_type.strip().lower() != "application/json" or charset not in ("utf-8", "utf8"):
        raise ApiError(415, "send JSON in UTF-8, with Content-Type: application/json", "Content-Type")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
