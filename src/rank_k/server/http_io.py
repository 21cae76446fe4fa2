"""Routes, request bodies as strict JSON, and responses, for all parts of the server."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from rank_k.optional_deps import load
from rank_k.server.api_errors import ApiError
from rank_k.server.config import Limits

if TYPE_CHECKING:
    from starlette.requests import Request as Request
    from starlette.responses import Response as Response
else:
    Request = Response = Any  # for annotations only: Starlette belongs to an extra

T = TypeVar("T")
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_INTEGER = 2**53
"""The largest integer that all JSON parsers represent exactly. Larger integers in requests are reduced to it."""


class RouteGroup(NamedTuple):
    """The routes of one part of the server.

    Attributes:
        name: The name of the part. The web pages request the list of names to see which parts are available.
        routes: Routes of Starlette.
        open_paths: Paths that need no key.
        private_paths: Paths that are not available if the server requires no key and other machines can reach it.
    """

    name: str
    routes: Sequence[Any]
    open_paths: frozenset[str] = frozenset()
    private_paths: frozenset[str] = frozenset()


def route(path: str, handler: Callable[[Request], Awaitable[Any]], *methods: str) -> Any:
    """Return a Starlette route for `methods` (default: GET). Raises `MissingExtra` if Starlette is not installed."""
    return load("starlette.routing").Route(path, handler, methods=methods or ("GET",))


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raises the errors of `read_body` and `json_object`."""
    return json_object(await read_body(request))


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: If the body is too large or arrives too slowly, or the client disconnects.
    """
    limits: Limits = request.app.state.limits
    too_large = ApiError(413, f"the body is larger than {limits.max_body:,} bytes", headers={"Connection": "close"})
    content_length = request.headers.get("content-length", "")
    if content_length.isdecimal() and int(content_length[:20]) > limits.max_body:
        raise too_large
    disconnect_error: type[Exception] = load("starlette.requests").ClientDisconnect
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body:
                    raise too_large
    except TimeoutError:
        message = f"the body did not arrive within {limits.body_seconds:g} s"
        raise ApiError(408, message, headers={"Connection": "close"}) from None
    except disconnect_error:
        raise client_disconnected() from None
    return bytes(body)


async def wait_for_disconnect(receive: Receive) -> None:
    """Wait until the client disconnects or has received the response. Call it after the request body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_until(interruption: Coroutine[Any, Any, object], work: Coroutine[Any, Any, T], error: ApiError) -> T:
    """Return the result of `work`, unless `interruption` ends first.

    Args:
        interruption: A coroutine. If it ends before `work`, `work` is cancelled and `error` is raised.
        work: The coroutine that computes the result.
        error: The error to raise.
    """
    work_task, interruption_task = asyncio.create_task(work), asyncio.create_task(interruption)
    try:
        await asyncio.wait({work_task, interruption_task}, return_when=asyncio.FIRST_COMPLETED)
        if not work_task.done():
            raise error
        return work_task.result()
    finally:
        work_task.cancel()
        interruption_task.cancel()
        await asyncio.gather(work_task, interruption_task, return_exceptions=True)


def client_disconnected() -> ApiError:
    """Return the error for a request whose client has disconnected."""
    return ApiError(499, "the client disconnected")


def json_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`.

    Raises:
        ApiError: If `raw` is not a JSON object in UTF-8, repeats a key, is nested too deeply, or contains a number that
            is not finite.
    """
    try:
        body = json.loads(
            raw.decode("utf-8-sig"),
            parse_constant=_finite_number,
            parse_float=_finite_number,
            parse_int=lambda text: max(-LARGEST_INTEGER, min(int(text), LARGEST_INTEGER)),
            object_pairs_hook=_object_with_unique_keys,
        )
    except UnicodeDecodeError as error:
        raise ApiError(400, f"the body is not UTF-8 (byte {error.start})") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as error:  # a JSONDecodeError, or an integer of thousands of digits
        raise ApiError(400, f"the body is not JSON: {str(error).partition(';')[0][:100]}") from None
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


def _finite_number(text: str) -> float:
    """Return the number in `text`, as an integer if it has no fraction. JSON does not distinguish 1 from 1.0."""
    value = float(text)
    if not math.isfinite(value):
        raise ApiError(400, f"the body is not JSON: {printable(text)} is not a finite number")
    return int(value) if value.is_integer() else value


def _object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ApiError(400, f"{printable(name)} occurs twice", printable(name))
        result[name] = value
    return result


def printable(name: str) -> str:
    """Return text that the client sent, truncated and without control characters, for an error message."""
    return "".join(c if c.isprintable() else "?" for c in name[:60])


def to_json_bytes(value: Any) -> bytes:
    """Return JSON in ASCII. Lone surrogates, which UTF-8 cannot encode, remain as escape sequences."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return `value` as a JSON response."""
    return response(to_json_bytes(value), status, {**(headers or {}), "Content-Type": "application/json"})


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    """Return `error` as a response with its status, body and headers, and with additional `headers`."""
    return json_response(error.body(), error.status, {**(headers or {}), **error.headers})


def response(body: bytes, status: int, headers: Mapping[str, str]) -> Response:
    """Return a Starlette response. Raises `MissingExtra` if Starlette is not installed."""
    make: Callable[..., Response] = load("starlette.responses").Response
    return make(body, status, headers)
