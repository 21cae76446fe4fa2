"""A fake HTTP server whose responses a function decides, down to how the connection ends.

For responses that no well-behaved server sends, and for those of one particular server. `tests.fakes.model_server` is
the fake of a whole reasoning model.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.fakes.asyncio_http import read_request, run_server_in_thread

Ending = Literal["complete", "no_last_chunk", "reset", "short"]


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """One HTTP response.

    `ending`: "complete"; "no_last_chunk" closes a chunked body before its last chunk; "reset" aborts the connection
    after the body; "short" states a Content-Length that is larger than the body, and closes.
    """

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    ending: Ending = "complete"


def as_json(value: Any, status: int = 200) -> HttpResponse:
    return HttpResponse(json.dumps(value).encode(), status)


def as_events(*events: Any, done: bool = True, ending: Ending = "complete") -> HttpResponse:
    """A stream of server-sent events: JSON objects, and `[DONE]` unless `done` is False."""
    lines = [f"data: {json.dumps(event)}\n\n" for event in events] + ["data: [DONE]\n\n"] * done
    return HttpResponse("".join(lines).encode(), content_type="text/event-stream", ending=ending)


def chat_chunk(content: str, finish_reason: str | None = None, **delta: Any) -> dict[str, Any]:
    """A chunk of a streamed chat completion."""
    return {"choices": [{"index": 0, "delta": {"content": content, **delta}, "finish_reason": finish_reason}]}


Responder = Callable[[str, str, Any], HttpResponse]
"""Called with the method, the path and the parsed JSON body (None without one)."""


@dataclass(slots=True)
class ScriptedServer:
    """A running server. `requests`: (path, parsed body) of every POST so far."""

    url: str
    requests: list[tuple[str, Any]] = field(default_factory=list)

    def bodies(self, path: str) -> list[Any]:
        """The bodies of the POST requests to `path`, in the order of their arrival."""
        return [body for requested, body in self.requests if requested == path]


@contextmanager
def scripted_server(respond: Responder) -> Iterator[ScriptedServer]:
    """Run a server on a free port of the loopback interface, in a thread."""
    server = ScriptedServer("")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await _exchange(reader, writer, server, respond):
                pass
        except (asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has closed the connection
        finally:
            writer.close()

    async def run(ready: Callable[[str], object], stop: asyncio.Event) -> None:
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        ready(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1")
        await stop.wait()
        listening.close()

    with run_server_in_thread(run) as server.url:
        yield server


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: ScriptedServer, respond: Responder
) -> bool:
    """Answer one request; return whether the connection stays open."""
    method, path, _, body = await read_request(reader)
    if method == "POST":
        server.requests.append((path, body))
    response = respond(method, path, body)
    head = f"HTTP/1.1 {response.status} Status\r\nContent-Type: {response.content_type}\r\n"
    if response.ending == "short":
        head += f"Content-Length: {len(response.body) + 100}\r\n\r\n"
        payload = response.body
    else:
        head += "Transfer-Encoding: chunked\r\n\r\n"
        last_chunk = b"0\r\n\r\n" if response.ending == "complete" else b""
        payload = b"%x\r\n%b\r\n" % (len(response.body), response.body) + last_chunk
    writer.write(head.encode() + payload)
    await writer.drain()
    if response.ending == "reset":
        await asyncio.sleep(0.05)  # the body should arrive first, as from a proxy that drops the connection behind it
        writer.transport.abort()
    return response.ending == "complete"
