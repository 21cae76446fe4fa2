"""Ways to run a fake model server: in a thread, in a child process, and from the command line."""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from functools import partial
from http.client import HTTPConnection
from typing import Any

from tests.fakes.asyncio_http import run_server_in_thread
from tests.fakes.model_server.fault_plan import TRANSIENT, Fault, FaultPlan
from tests.fakes.model_server.request_log import RecordedRequest
from tests.fakes.model_server.server import ModelServer
from tests.paths import ROOT
from tests.support.waiting import PATIENCE


@dataclass(frozen=True, slots=True)
class FakeModelServer:
    """A running server, seen from outside; the same for one in a thread and one in a child process."""

    url: str  # what a client is given: http://127.0.0.1:PORT/v1
    pid: int | None = None  # of the child process, where it runs in one

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        connection = HTTPConnection(self.url.split("/")[2], timeout=PATIENCE)
        try:
            connection.request(method, path, json.dumps(body))
            response = connection.getresponse()
            payload = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(payload["error"]["message"])
        return payload

    def change(self, **plan: Any) -> None:
        """Change the plan for the requests to come."""
        self._request("POST", "/control", plan)

    def forget(self) -> None:
        """Clear the log; transient faults occur again."""
        self._request("DELETE", "/log")

    @property
    def requests(self) -> list[RecordedRequest]:
        """All requests so far, by time of arrival; those in flight have no `end`."""
        return [RecordedRequest(**request) for request in self._request("GET", "/log")["requests"]]

    @property
    def calls(self) -> list[RecordedRequest]:
        """The chat completions among `requests`."""
        return [request for request in self.requests if request.path == "/v1/chat/completions"]

    @property
    def connections(self) -> int:
        """How many connections were opened, that of this request included."""
        return int(self._request("GET", "/log")["connections"])


@contextmanager
def run_in_thread(plan: FaultPlan) -> Iterator[FakeModelServer]:
    """Run a server in a thread: quick to start, for tests."""
    with run_server_in_thread(partial(ModelServer(plan).run, 0)) as url:
        yield FakeModelServer(url)


@contextmanager
def run_in_process(plan: FaultPlan) -> Iterator[FakeModelServer]:
    """Run a server in a child process, so that it shares neither the interpreter lock nor the CPU account."""
    command = [sys.executable, "-m", "tests.fakes.model_server"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            server = FakeModelServer(child.stdout.readline().strip(), child.pid)
            server.change(**asdict(plan))
            yield server
        finally:
            with suppress(BrokenPipeError):
                child.stdin.close()
            try:
                child.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                child.kill()


async def _serve_until_stdin_closes(plan: FaultPlan, port: int) -> None:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def wait_for_parent() -> None:
        sys.stdin.buffer.read()
        loop.call_soon_threadsafe(stop.set)

    def announce(url: str) -> None:
        sys.stdout.write(f"{url}\n")
        sys.stdout.flush()

    threading.Thread(target=wait_for_parent, daemon=True).start()
    await ModelServer(plan).run(port, announce, stop)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fakes.model_server")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    for setting in fields(FaultPlan):
        option = f"--{setting.name.replace('_', '-')}"
        if isinstance(setting.default, bool):
            parser.add_argument(option, action="store_true")
        else:
            kind = Fault.of if setting.name in TRANSIENT else type(setting.default)
            parser.add_argument(option, type=kind, default=setting.default)
    options = vars(parser.parse_args())
    port = options.pop("port")
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve_until_stdin_closes(FaultPlan().changed(options), port))
