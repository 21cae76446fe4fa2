"""Parts of a fake HTTP server on asyncio: run it in a thread, and read a request."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, NamedTuple

from tests.support.waiting import PATIENCE

RunServer = Callable[[Callable[[str], object], asyncio.Event], Awaitable[None]]
"""Serves until the event is set, and calls the function with the base URL when it is ready."""


class HttpRequest(NamedTuple):
    """A request. `headers` have lower-case names; `body` is the parsed JSON, or None without a body."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: Any


async def read_request(reader: asyncio.StreamReader) -> HttpRequest:
    """Read the next request of a connection. Raises `asyncio.IncompleteReadError` at its end."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    request_line, *lines = head.rstrip().split("\r\n")
    method, path, _ = request_line.split(" ")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    raw_body = await reader.readexactly(int(headers.get("content-length", 0)))
    return HttpRequest(method, path, headers, json.loads(raw_body) if raw_body else None)


@contextmanager
def run_server_in_thread(run: RunServer) -> Iterator[str]:
    """Run a server in a thread of its own and yield its base URL."""
    ready: Future[str] = Future()
    handles: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def main() -> None:
        stop = asyncio.Event()
        handles.append((asyncio.get_running_loop(), stop))
        await run(ready.set_result, stop)

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    try:
        yield ready.result(timeout=PATIENCE)
    finally:
        for loop, stop in handles:
            loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=PATIENCE)
