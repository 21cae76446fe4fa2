"""A fake server with OpenAI's batch API, and faults. A fake model server computes the responses."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.support.waiting import PATIENCE, wait_until


@dataclass
class BatchFaults:
    """What goes wrong. Shares are of the lines of a batch; each line has a fault in its first batch only."""

    expired: float = 0.0
    missing: float = 0.0
    refused: float = 0.0
    repeated: float = 0.0
    shuffled: bool = False
    failing_uploads: int = 0
    """Uploads that end with status 500."""
    lost_answers_of_create: int = 0
    """Batches that are started, but whose creation is answered with status 500."""
    polls_before_end: int = 1


@dataclass
class FakeBatchServer:
    """The state of the server, which tests read and change."""

    model_url: str
    faults: BatchFaults = field(default_factory=BatchFaults)
    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    batches: dict[str, dict[str, Any]] = field(default_factory=dict)
    polls: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    """How often each request was answered, and so paid."""
    faulty: set[str] = field(default_factory=set)

    async def upload(self, request: Request) -> Response:
        if self.faults.failing_uploads > 0:
            self.faults.failing_uploads -= 1
            return JSONResponse({"error": {"message": "internal error"}}, 500)
        async with request.form() as form:
            content = await form["file"].read()  # type: ignore[union-attr]
            purpose = form["purpose"]
        file_id = f"file-{len(self.files)}"
        self.files[file_id] = content
        return JSONResponse({"id": file_id, "object": "file", "purpose": purpose})

    async def create(self, request: Request) -> Response:
        body = await request.json()
        batch_id = f"batch_{len(self.batches)}"
        self.batches[batch_id] = {"id": batch_id, "object": "batch", "status": "validating", **body}
        if self.faults.lost_answers_of_create > 0:
            self.faults.lost_answers_of_create -= 1
            return JSONResponse({"error": {"message": "internal error"}}, 500)
        return JSONResponse(self.batches[batch_id])

    async def list_batches(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": list(self.batches.values())[::-1]})

    async def get_batch(self, request: Request) -> Response:
        batch = self.batches[request.path_params["id"]]
        self.polls[batch["id"]] += 1
        if batch["status"] != "completed":
            batch["status"] = "in_progress"
            if self.polls[batch["id"]] >= self.faults.polls_before_end:
                await asyncio.to_thread(self._complete, batch)
        return JSONResponse(batch)

    async def content(self, request: Request) -> Response:
        return PlainTextResponse(self.files[request.path_params["id"]])

    def _complete(self, batch: dict[str, Any]) -> None:
        rng = random.Random(batch["id"])
        output: list[bytes] = []
        errors: list[bytes] = []
        for line in self.files[batch["input_file_id"]].splitlines():
            request = json.loads(line)
            key, fault = request["custom_id"], ""
            if key not in self.faulty:
                draw = rng.random()
                for name in ("expired", "missing", "refused", "repeated"):
                    share = getattr(self.faults, name)
                    if draw < share:
                        fault = name
                        break
                    draw -= share
            if fault:
                self.faulty.add(key)
            if fault == "expired":
                error = {"code": "batch_expired", "message": "This request could not be executed in time."}
                errors.append(json.dumps({"custom_id": key, "response": None, "error": error}).encode())
            elif fault == "refused":
                response = {"status_code": 400, "body": {"error": {"message": "refused"}}}
                errors.append(json.dumps({"custom_id": key, "response": response, "error": None}).encode())
            elif fault != "missing":
                self.answered[key] += 1
                response = {"status_code": 200, "request_id": key[:8], "body": self._answer(request["body"])}
                answer = json.dumps({"custom_id": key, "response": response, "error": None}).encode()
                output += [answer] * (2 if fault == "repeated" else 1)
        if self.faults.shuffled:
            rng.shuffle(output)
        batch["status"] = "completed"
        for name, lines in (("output_file_id", output), ("error_file_id", errors)):
            if lines:
                batch[name] = f"{batch['id']}-{name}"
                self.files[batch[name]] = b"\n".join(lines) + b"\n"

    def _answer(self, body: dict[str, Any]) -> Any:
        connection = HTTPConnection(self.model_url.split("/")[2], timeout=PATIENCE)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()


@contextmanager
def run_batch_server(model_url: str, faults: BatchFaults | None = None) -> Iterator[FakeBatchServer]:
    """Run a fake batch server in a thread."""
    state = FakeBatchServer(model_url, faults or BatchFaults())
    routes = [
        Route("/v1/files", state.upload, methods=["POST"]),
        Route("/v1/files/{id}/content", state.content),
        Route("/v1/batches", state.create, methods=["POST"]),
        Route("/v1/batches", state.list_batches),
        Route("/v1/batches/{id}", state.get_batch),
    ]
    server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait_until(lambda: server.started, "the fake batch server does not start")
    port = server.servers[0].sockets[0].getsockname()[1]
    state.url = f"http://127.0.0.1:{port}/v1"
    try:
        yield state
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
