"""The door: who may speak to the server, checked before anything else is looked at.

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

_SENT_ALWAYS = {
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
        doors: AccessConfig,
        open_paths: frozenset[str] = OPEN_PATHS,
        *,
        methods: str = "GET, POST",
        headers: str = "Authorization, Content-Type",
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._allowed = {"Access-Control-Allow-Methods": methods, "Access-Control-Allow-Headers": headers}
        self._names = frozenset(map(host_name, {*doors.hosts, doors.host})) | LOOPBACK_NAMES
        self._any_address = not is_loopback(doors.host)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in doors.origins)
        self._keys = tuple(_digest(key.encode()) for key in doors.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])}
        host, origin = headers.get("host", ""), headers.get("origin")
        extra = dict(_SENT_ALWAYS)
        try:
            self._check_host(host)
            if origin is not None and self._is_let_in(origin, host):
                extra |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin"}
                extra["Cross-Origin-Resource-Policy"] = "cross-origin"
                if scope["method"] == "OPTIONS":
                    await _answer_preflight(send, extra | self._allowed)
                    return
            client = self._client(scope, headers.get("authorization", ""))
            if scope["method"] == "POST":
                _check_content_type(headers.get("content-type", ""))
        except ApiError as refusal:
            await send_error(send, refusal, extra)
            return
        scope.setdefault("state", {})["client"] = client
        await self._app(scope, receive, _with_headers(send, extra))

    def _check_host(self, host: str) -> None:
        """Raise unless the server is called by a name it has. An address cannot be made to point elsewhere."""
        name = host_name(host)
        if name in self._names or (self._any_address and _is_address(name)):
            return
        raise ApiError(421, "this server is not known under the name in the Host header; see --allow-host")

    def _is_let_in(self, origin: str, host: str) -> bool:
        """Whether the page is one of those allowed by name; False for the server's own. Raises for all others."""
        origin = origin.lower()
        if origin in self._origins:
            return True
        scheme, _, place = origin.partition("://")
        if scheme in ("http", "https") and place == host.lower():
            return False
        raise ApiError(403, "pages of this origin may not use this server; see --allow-origin")

    def _client(self, scope: Scope, authorization: str) -> str:
        address = scope.get("client")
        told = f"address {address[0]}" if address else "address unknown"
        if not self._keys or scope["path"] in self._open_paths:
            return told
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip().encode("latin-1", "replace"))
        fits = [hmac.compare_digest(given, known) for known in self._keys]  # all of them: the time tells nothing
        if scheme.lower() != "bearer" or not any(fits):
            raise ApiError(401, "a key is needed: Authorization: Bearer KEY", headers={"WWW-Authenticate": "Bearer"})
        return f"key {given.hex()}"


async def send_error(send: Send, refusal: ApiError, headers: MutableMapping[str, str] | None = None) -> None:
    """Answer with `refusal`, as JSON."""
    body = to_json_bytes(refusal.body())
    sent = {**(headers or {}), "Content-Type": "application/json", **refusal.headers, "Content-Length": str(len(body))}
    await send({"type": "http.response.start", "status": refusal.status, "headers": _raw(sent.items())})
    await send({"type": "http.response.body", "body": body})


async def _answer_preflight(send: Send, headers: MutableMapping[str, str]) -> None:
    sent = {**headers, "Access-Control-Max-Age": "600"}
    await send({"type": "http.response.start", "status": 204, "headers": _raw(sent.items())})
    await send({"type": "http.response.body", "body": b""})


def _with_headers(send: Send, headers: MutableMapping[str, str]) -> Send:
    raw = _raw(headers.items())

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *raw]
        await send(message)

    return sending


def _raw(headers: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]


def _check_content_type(value: str) -> None:
    kind, _, parameters = value.partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "").partition("charset=")[2] or "utf-8"
    if kind.strip().lower() != "application/json" or charset not in ("utf-8", "utf8"):
        raise ApiError(415, "send JSON in UTF-8, with Content-Type: application/json", "Content-Type")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
