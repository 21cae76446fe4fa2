"""What every path needs: a body as it comes in, and an answer as it goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from rank_k.optional_deps import load
from rank_k.server.api_errors import ApiError
from rank_k.server.responses import to_json_bytes

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response


async def read_body(request: Request, max_bytes: int, seconds: float) -> bytes:
    """The request's body, no longer than `max_bytes` bytes and not slower than `seconds`. Raises `ApiError`."""
    too_large = ApiError(413, f"the body has more than {max_bytes:,} bytes", headers={"Connection": "close"})
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length[:20]) > max_bytes:
        raise too_large
    disconnect_error: type[Exception] = load("starlette.requests").ClientDisconnect
    body = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds:g} s", headers={"Connection": "close"}) from None
    except disconnect_error:
        raise client_disconnected() from None
    return bytes(body)


def client_disconnected() -> ApiError:
    return ApiError(499, "the client went away")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return response(to_json_bytes(value), status, {**(headers or {}), "Content-Type": "application/json"})


def response(body: bytes, status: int, headers: Mapping[str, str]) -> Response:
    make: Callable[..., Response] = load("starlette.responses").Response
    return make(body, status, headers)
