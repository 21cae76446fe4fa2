"""Access control: the middleware that checks every request before its body is read.

Any web page in a browser on this machine can send requests to a server on 127.0.0.1: from the origin of the page, or
through a host name that an attacker has rebound to 127.0.0.1 (DNS rebinding). Therefore the Host header must contain
the name of this server, requests from pages of other origins are rejected, and the body of a POST must be declared as
JSON, so that browsers send a preflight request first.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

from rank_k.optional_deps import load
from rank_k.server.api_errors import ApiError
from rank_k.server.config import LOOPBACK_NAMES, AccessConfig, host_name, is_address, is_loopback
from rank_k.server.http_io import App, Receive, Scope, Send, error_response, response

DEFAULT_CORS_HEADERS = {
    "Access-Control-Allow-Methods": "GET, POST",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
}

_COMMON_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class AccessMiddleware:
    """ASGI middleware that passes allowed requests on to an application.

    It stores a name for the client as `client` in the state of the scope: the digest of its key, or else its address.

    Args:
        app: The application.
        access: Who may use the application.
        open_paths: Paths that need no key.
        private_paths: Paths that are not available if the server requires no key and other machines can reach it.
        cors_headers: CORS headers in responses to pages of allowed origins.
    """

    def __init__(
        self,
        app: App,
        access: AccessConfig,
        open_paths: frozenset[str] = frozenset(),
        private_paths: frozenset[str] = frozenset(),
        cors_headers: Mapping[str, str] = DEFAULT_CORS_HEADERS,
    ) -> None:
        self._app = app
        self._open_paths = open_paths
        self._refused_paths = private_paths if access.open_to_all else frozenset()
        self._cors_headers = {**cors_headers, "Access-Control-Max-Age": "600"}
        self._host_names = frozenset(map(host_name, {*access.hosts, access.host})) | LOOPBACK_NAMES
        self._accepts_any_address = not is_loopback(access.host)
        self._origins = frozenset(origin.rstrip("/").lower() for origin in access.origins)
        self._key_digests = tuple(hashlib.sha256(key.encode()).digest() for key in access.keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        datastructures: Any = load("starlette.datastructures")
        headers = datastructures.Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        extra_headers = dict(_COMMON_HEADERS)
        try:
            self._check_host(host)
            if origin is not None and self._is_allowed_origin(origin, host):
                extra_headers |= {"Access-Control-Allow-Origin": origin, "Vary": "Origin", **self._cors_headers}
                extra_headers["Cross-Origin-Resource-Policy"] = "cross-origin"
                if scope["method"] == "OPTIONS":
                    await response(b"", 204, extra_headers)(scope, receive, send)
                    return
            scope.setdefault("state", {})["client"] = self._identify_client(scope, headers.get("authorization", ""))
            if scope["path"] in self._refused_paths:
                raise ApiError(403, "only available if the server requires a key (--client-key-env)")
            if scope["method"] == "POST":
                _check_content_type(headers.get("content-type", ""))
        except ApiError as error:
            await error_response(error, extra_headers)(scope, receive, send)
            return

        async def send_with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                datastructures.MutableHeaders(scope=message).update(extra_headers)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _check_host(self, host: str) -> None:
        """Raise `ApiError` unless the Host header names this server. Addresses are allowed: they cannot be rebound."""
        name = host_name(host)
        if name not in self._host_names and not (self._accepts_any_address and is_address(name)):
            raise ApiError(421, "unknown name in the Host header; the server's operator can allow it with --allow-host")

    def _is_allowed_origin(self, origin: str, host: str) -> bool:
        """Return True for an origin allowed with --allow-origin, and False for the server's own pages.

        Raises:
            ApiError: For all other origins.
        """
        origin = origin.lower()
        if origin in self._origins:
            return True
        scheme, _, authority = origin.partition("://")
        if scheme in ("http", "https") and authority == host.lower():
            return False
        raise ApiError(
            403, "pages of this origin may not use the server; its operator can allow it with --allow-origin"
        )

    def _identify_client(self, scope: Scope, authorization: str) -> str:
        address = scope.get("client")
        address_label = f"address {address[0]}" if address else "address unknown"
        if not self._key_digests or scope["path"] in self._open_paths:
            return address_label
        scheme, _, key = authorization.partition(" ")
        digest = hashlib.sha256(key.strip().encode("latin-1", "replace")).digest()
        # All keys are compared, so that the response time does not reveal which one matches.
        matches = [hmac.compare_digest(digest, key_digest) for key_digest in self._key_digests]
        if scheme.lower() != "bearer" or not any(matches):
            message = "missing or unknown key; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        return f"key {digest.hex()}"


def _check_content_type(value: str) -> None:
    media_type, _, parameters = value.partition(";")
    charset = parameters.lower().replace(" ", "").replace('"', "").partition("charset=")[2] or "utf-8"
    if media_type.strip().lower() != "application/json" or charset not in ("utf-8", "utf8"):
        raise ApiError(415, "send JSON in UTF-8 with the header Content-Type: application/json", "Content-Type")
