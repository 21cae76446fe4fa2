"""A real server around a reranker, in a thread of the test's own process or as the command; and a client for it."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from rank_k import Reranker
from rank_k.server.app import make_app
from rank_k.server.config import AccessConfig, Limits
from rank_k.server.http_io import App, RouteGroup
from rank_k.server.run import create_server
from rank_k.server.service import RerankService
from tests.paths import ROOT
from tests.support.waiting import PATIENCE


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    raw: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.raw)

    @property
    def indices(self) -> list[int]:
        return [result["index"] for result in self.json["results"]]

    @property
    def events(self) -> list[tuple[str, Any]]:
        """Of a stream: (kind, data) in the order sent. Comments are left out."""
        events = []
        for block in self.raw.decode().split("\n\n"):
            lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
            if lines:
                events.append((lines["event"], json.loads(lines["data"])))
        return events


@dataclass(frozen=True)
class ServerClient:
    url: str
    service: RerankService | None = None
    errors: list[Exception] = field(default_factory=list)

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        assert parts.port is not None
        return parts.hostname, parts.port

    def send(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(*self.address, timeout=PATIENCE)
        request_headers = {name.replace("_", "-"): value for name, value in headers.items()}
        try:
            connection.request(method, path, body, request_headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Answer:
        return self.send("GET", path, None, **headers)

    def post(self, body: Any, path: str = "/v2/rerank", **headers: str) -> Answer:
        """`body`: bytes as they are, anything else as JSON."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.send("POST", path, raw, **{"Content_Type": "application/json", **headers})

    def rerank(self, documents: list[Any], query: str = "q", **fields: Any) -> Answer:
        return self.post({"query": query, "documents": documents, **fields})

    def gauge(self, name: str) -> float:
        """Return the value of `rank_k_<name>` at /metrics."""
        lines = self.get("/metrics").raw.decode().splitlines()
        return float(next(line for line in lines if line.startswith(f"rank_k_{name} ")).split()[1])

    def is_connected(self, client: socket.socket) -> bool:
        """Whether a server in this process still has its end of the connection `client` open."""
        connections = psutil.Process().net_connections("tcp")
        return any(
            (connection.laddr, connection.raddr) == (self.address, client.getsockname()) for connection in connections
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, timeout=PATIENCE)


@contextmanager
def run_server(
    reranker: Reranker | None,
    limits: Limits = Limits(),
    access: AccessConfig = AccessConfig(),
    journal: Path | None = None,
    route_groups: Sequence[RouteGroup] = (),
    make: Callable[[RerankService, AccessConfig], App] | None = None,
) -> Iterator[ServerClient]:
    """Run the application that `make` returns in a thread: by default the HTTP API with `route_groups`.

    Closes `reranker` in the end.
    """
    errors: list[Exception] = []
    service = RerankService(reranker, limits, errors.append, journal=journal)
    app = make_app(service, access, route_groups) if make is None else make(service, access)
    server, sock, url = create_server(service, app, access.host, 0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, daemon=True)
    thread.start()
    try:
        yield ServerClient(url, service, errors)
    finally:
        server.should_exit = True
        thread.join(timeout=PATIENCE)
        if reranker is not None:
            reranker.close()
        sock.close()
        assert not thread.is_alive()


class ServerProcess:
    """`rank-k serve`, or another verb that serves, or a `program`, in a process of its own; `more` goes to `Popen`."""

    def __init__(
        self,
        *options: str,
        verb: str = "serve",
        program: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        more: Mapping[str, Any] = {},
    ) -> None:
        self.process = subprocess.Popen(
            [*(program or (sys.executable, "-m", "rank_k.cli", verb)), "--port", "0", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src"), **(env or {})},
            **more,
        )
        assert self.process.stdout is not None
        self.first_line = self.process.stdout.readline().strip()
        assert " at http://" in self.first_line, self.end()
        self.served = ServerClient(self.first_line.rsplit(" ", 1)[1])

    def signal(self, name: signal.Signals) -> None:
        self.process.send_signal(name)

    def end(self, seconds: float = PATIENCE) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        out, err = self.process.communicate(timeout=seconds)
        return self.process.returncode, out, err


@contextmanager
def start_server(*options: str, env: Mapping[str, str] | None = None, verb: str = "serve") -> Iterator[ServerProcess]:
    running = ServerProcess(*options, env=env, verb=verb)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.signal(signal.SIGTERM)
            try:
                running.process.communicate(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                running.process.kill()
                running.process.communicate()
