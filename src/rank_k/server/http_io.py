"""What all paths need: routes, the bodies of requests as strict JSON, responses."""

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
"""JSON readers do not distinguish integers beyond this one, so larger ones are read as this one."""


class RouteGroup(NamedTuple):
    """Routes of one part of the server.

    Attributes:
        name: By which the page finds out whether this part is there.
        routes: Starlette's.
        open_paths: Paths that need no key.
        private_paths: Paths that are refused if anybody can reach the server without a key.
    """

    name: str
    routes: Sequence[Any]
    open_paths: frozenset[str] = frozenset()
    private_paths: frozenset[str] = frozenset()


def route(path: str, handler: Callable[[Request], Awaitable[Any]], *methods: str) -> Any:
    """Return a Starlette route (default: for GET). Raises `MissingExtra`."""
    return load("starlette.routing").Route(path, handler, methods=methods or ("GET",))


async def read_json(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body of a request. Raises `ApiError`."""
    return json_object(await read_body(request))


async def read_body(request: Request) -> bytes:
    """Return the body of a request.

    Raises:
        ApiError: If the body is too large or arrives too slowly, or the client disconnects.
    """
    limits: Limits = request.app.state.limits
    too_large = ApiError(413, f"the body has more than {limits.max_body:,} bytes", headers={"Connection": "close"})
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
    """Return when the client has disconnected, or has its whole response. The body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def run_until(interruption: Coroutine[Any, Any, object], work: Coroutine[Any, Any, T], error: ApiError) -> T:
    """Return the result of `work`. If `interruption` ends first, cancel `work` and raise `error`."""
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
    return ApiError(499, "the client went away")


def json_object(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`.

    Raises:
        ApiError: If there is none, or it has NaN, a number beyond the range of a double, a key that is given twice, or
            unbounded nesting.
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
    """Return the number in `text`: an integer if it is whole, for JSON has one kind of number."""
    value = float(text)
    if not math.isfinite(value):
        raise ApiError(400, f"the body is not JSON: {printable(text)} is not a finite number")
    return int(value) if value.is_integer() else value


def _object_with_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ApiError(400, f"{printable(name)} is given twice", printable(name))
        result[name] = value
    return result


def printable(name: str) -> str:
    """Return a name that a client chose, shortened and without control characters."""
    return "".join(c if c.isprintable() else "?" for c in name[:60])


def to_json_bytes(value: Any) -> bytes:
    """Return JSON in ASCII, so that lone surrogates, which UTF-8 cannot encode, are returned unchanged."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return response(to_json_bytes(value), status, {**(headers or {}), "Content-Type": "application/json"})


def error_response(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    return json_response(error.body(), error.status, {**(headers or {}), **error.headers})


def response(body: bytes, status: int, headers: Mapping[str, str]) -> Response:
    make: Callable[..., Response] = load("starlette.responses").Response
    return make(body, status, headers)
