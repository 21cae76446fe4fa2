"""A fake model server that keeps every request as raw bytes and answers deterministically.

One server plays all server types and behaviors: `http://127.0.0.1:PORT/TYPE/BEHAVIOR+BEHAVIOR/v1` is the base URL of
one of them. A response depends on the request body only, except for behaviors that fail once (`FAIL_ONCE`).
`tests.golden.responses` composes the responses; this module does the HTTP.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.golden.responses import FAIL_ONCE, MODEL, ModelResponse, Profile, rejection, response_to, token_response

HEADERS = ("Accept", "Authorization", "Connection", "Content-Type", "User-Agent")
"""The request headers that are kept."""


@dataclass(frozen=True)
class CapturedRequest:
    """One request, as it arrived. `path` is without the prefix `/TYPE/BEHAVIOR`."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes


class ModelServer:
    """The running server; `captured` grows with every request, in order of arrival."""

    def __init__(self, port: int) -> None:
        self.origin = f"http://127.0.0.1:{port}"
        self.captured: list[CapturedRequest] = []
        self._failed: set[bytes] = set()
        self._lock = threading.Lock()

    def url(self, server_type: str, behaviors: str = "normal") -> str:
        """The base URL of a server of that type with these behaviors."""
        return f"{self.origin}/{server_type}/{behaviors}/v1"

    def take_requests(self) -> list[CapturedRequest]:
        """Return the requests since the last call, and forget which of them have failed once."""
        with self._lock:
            captured, self.captured = self.captured, []
            self._failed.clear()
        return captured

    def store_request(self, request: CapturedRequest) -> bool:
        """Keep a request; True if its body is new since the last `take`."""
        with self._lock:
            self.captured.append(request)
            is_new = request.body not in self._failed
            self._failed.add(request.body)
        return is_new


@contextmanager
def running_model_server() -> Iterator[ModelServer]:
    """Run the server in threads of this process."""
    http_server = _HttpServer(("127.0.0.1", 0), _Handler)
    http_server.model_server = ModelServer(http_server.server_address[1])
    thread = threading.Thread(target=http_server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield http_server.model_server
    finally:
        http_server.shutdown()
        http_server.server_close()
        thread.join(timeout=30)


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True
    model_server: ModelServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that hang up."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # buffered: a stream leaves in one piece
    server: _HttpServer

    def log_message(self, format: str, *args: Any) -> None:
        """Write no log."""

    def do_GET(self) -> None:
        _, path, _ = self._store_request(b"")
        profile = self._profile()
        if path == "/v1/models" and "no-models" not in profile.behaviors:
            card = {"id": MODEL, "object": "model", "created": 0, **profile.card()}
            self._send_json(200, {"object": "list", "data": [card]})
        else:
            self._send_json(404, {"error": {"message": "Not Found"}})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        is_new, path, body = self._store_request(raw)
        profile = self._profile()
        if path in ("/tokenize", "/apply-template"):
            status, payload = token_response(profile, path, body)
            self._send_json(status, payload)
            return
        error = rejection(profile, path, body)
        if error is not None:
            self._send_json(*error)
            return
        if "busy" in profile.behaviors and is_new:
            self._send_json(429, {"error": {"message": "rate limit"}}, {"Retry-After": "0"})
            return
        response = response_to(profile, path, body)
        fails = is_new and bool(profile.behaviors & set(FAIL_ONCE))
        if body.get("stream") and "no-stream" not in profile.behaviors:
            self._send_stream(profile, response, body, fails)
        else:
            self._send_json(200, response.body())

    def _store_request(self, raw: bytes) -> tuple[bool, str, Any]:
        """Keep the request. Returns whether its body is new, its path without the prefix, and its JSON."""
        path = "/" + self.path.split("/", 3)[3]
        names = {name.lower(): name for name in HEADERS}
        headers = tuple(sorted((names[k.lower()], v) for k, v in self.headers.items() if k.lower() in names))
        is_new = self.server.model_server.store_request(CapturedRequest(self.command, path, headers, raw))
        return is_new, path, json.loads(raw) if raw else {}

    def _profile(self) -> Profile:
        _, server_type, behaviors, _ = self.path.split("/", 3)
        return Profile(server_type, frozenset(behaviors.split("+")))

    def _send_json(self, status: int, payload: Any, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(payload).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self._end_headers()
        self.wfile.write(data)

    def _end_headers(self) -> None:
        if self.close_connection:  # as the client wants it, which would otherwise use the connection again
            self.send_header("Connection", "close")
        self.end_headers()

    def _send_stream(self, profile: Profile, response: ModelResponse, body: Any, fails: bool) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self._end_headers()
        events = [f"data: {json.dumps(event, ensure_ascii=False)}\n\n".encode() for event in response.events(body)]
        if fails and "drop" in profile.behaviors:
            events = events[: len(events) // 2]
        else:
            events.append(b"data: [DONE]\n\n")
        for event in events:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))
        if fails:
            self.close_connection = True  # without the last chunk: the connection breaks
        else:
            self.wfile.write(b"0\r\n\r\n")
        self.wfile.flush()
