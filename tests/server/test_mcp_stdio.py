"""`rank-k mcp` as the child of a program that talks to it: the SDK's client, or bare lines where that is too polite."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from rank_k import Journal
from rank_k.cli import main
from tests.conftest import StartLoopback
from tests.fakes.model_server.running import FakeModelServer
from tests.models.test_embedded import PASSAGES
from tests.paths import ROOT
from tests.server.test_load import STUCK, has_calls, marked_passages, was_cancelled
from tests.support.embedded import USER_CACHE, needs_weights
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.integration

COMMAND = [sys.executable, "-m", "rank_k.cli", "mcp"]
DOCS_PAGE = ROOT / "docs" / "how-to" / "mcp.md"
INITIALIZE_MESSAGE = {
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}},
}


class McpProcess:
    """`rank-k mcp` and the other ends of its pipes."""

    def __init__(self, *options: str, program: str = "") -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program] if program else [*COMMAND, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        )

    def write(self, line: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

    def send(self, number: int | None, message: dict[str, Any]) -> None:
        id_field = {} if number is None else {"id": number}
        self.write(json.dumps({"jsonrpc": "2.0", **id_field, **message}).encode())

    def receive(self) -> Any:
        assert self.process.stdout is not None
        message = json.loads(self.process.stdout.readline())
        assert message["jsonrpc"] == "2.0"
        return message

    def initialize(self) -> None:
        self.send(0, INITIALIZE_MESSAGE)
        assert self.receive()["result"]["serverInfo"]["name"] == "rank-k"
        self.send(None, {"method": "notifications/initialized"})

    def call(self, number: int, **arguments: Any) -> None:
        self.send(number, {"method": "tools/call", "params": {"name": "rerank", "arguments": arguments}})

    def end(self, *, close: bool = True) -> tuple[int, bytes, str]:
        """Exit code, the rest of stdout, and stderr. `close` stdin, or leave it open meanwhile."""
        if close:
            out, err = self.process.communicate(timeout=PATIENCE)
            return self.process.returncode, out, err.decode()
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        watchdog = threading.Timer(PATIENCE, self.process.kill)
        watchdog.start()
        try:
            out, err = self.process.stdout.read(), self.process.stderr.read()
        finally:
            watchdog.cancel()
        return self.process.wait(timeout=PATIENCE), out, err.decode()


@contextmanager
def start_mcp(*options: str, program: str = "") -> Iterator[McpProcess]:
    running = McpProcess(*options, program=program)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.process.kill()
        running.process.communicate()


@contextmanager
def start_busy_mcp(model: FakeModelServer, *options: str) -> Iterator[McpProcess]:
    """A child with one call, numbered 1, about which the model has been asked."""
    with start_mcp("--server", model.url, *options) as running:
        running.initialize()
        running.call(1, query="q", documents=marked_passages(1))
        wait_until(has_calls(model), "nothing is asked")
        yield running


def indices(message: Any) -> list[int]:
    return [row["index"] for row in message["result"]["structuredContent"]["results"]]


def expected_stderr(model: str = "oracle") -> str:
    """All that is on stderr when nothing has gone wrong."""
    return f"rank-k mcp: {model} on standard input and output\nrank-k mcp: stopped\n"


# --- with the SDK's client ---


@pytest.mark.parametrize("mode", ["legacy", "auto"])
def test_mcp_stdio_serves_sdk_client(loopback: StartLoopback, mode: str) -> None:
    """Started as docs/how-to/mcp.md has it, but for the places."""
    model = loopback(model="hltcoe/Rank-K-32B")
    documented = json.loads(re.findall(r"```json\n(.*?)```", DOCS_PAGE.read_text(encoding="utf-8"), re.DOTALL)[0])
    config = documented["mcpServers"]["rank-k"]
    assert config["command"] == "rank-k"
    assert config["args"][0] == "mcp"
    arguments = [model.url if argument == "http://localhost:8000/v1" else argument for argument in config["args"][1:]]
    environment = {**config["env"], "PYTHONPATH": str(ROOT / "src")}
    server = StdioServerParameters(command=COMMAND[0], args=[*COMMAND[1:], *arguments], env=environment)

    async def rerank_once(client: Client, number: int) -> None:
        result = await client.call_tool(
            "rerank", {"query": f"query {number}", "documents": marked_passages(number), "top_n": 2}
        )
        assert not result.is_error
        assert [row["index"] for row in result.structured_content["results"]] == [3, 2]
        assert f"1. index 3: {marked_passages(number)[3]}" in result.content[0].text  # type: ignore[union-attr]

    async def main() -> None:
        async with Client(server, mode=mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["rerank"]
            await asyncio.gather(*(rerank_once(client, number) for number in range(20)))

    asyncio.run(main())
    assert {call.authorization for call in model.calls} == {f"Bearer {config['env']['RANK_K_API_KEY']}"}


# --- line by line ---


def test_mcp_stdio_skips_malformed_lines_and_ends_with_stdin(loopback: StartLoopback, tmp_path: Path) -> None:
    model, journal = loopback(), tmp_path / "asked.sqlite"
    with start_mcp("--server", model.url, "--journal", str(journal)) as server:
        for line in (b"hello", b"{", b"[]", b'{"jsonrpc": "2.0", "id": 1}', b"[" * 100_000, b"\xff\xfe", b'"\\u'):
            server.write(line)
        server.initialize()
        server.call(1, query="q", documents=marked_passages(1))
        assert indices(server.receive()) == [3, 2, 1, 0]
        server.call(2, query="q", documents=["x" * 10_000_000])
        message = server.receive()["result"]
        assert message["isError"] is True
        assert message["content"][0]["text"].startswith(
            "documents: query and documents together are longer than 4,000,000"
        )
        server.write(
            b'{"jsonrpc":"2.0","id":3,"method":"tools/call","params":{"name":"rerank","arguments":'
            b'{"query":"q","documents":["a \xff","b \\ud800"],"return_documents":true}}}'
        )
        message = server.receive()["result"]["structuredContent"]
        assert {row["text"] for row in message["results"]} == {"a \ufffd", "b \ufffd"}
        assert server.end() == (0, b"", expected_stderr())
    with closing(Journal(journal, read_only=True)) as journal_reader:
        assert sum(calls for _, _, calls, _, _ in journal_reader.usage_totals()) == 2


def test_mcp_stdio_cancels_model_call_at_end_of_stdin(loopback: StartLoopback) -> None:
    model = loopback(**STUCK)
    with start_busy_mcp(model) as server:
        code, _, err = server.end()
        assert (code, err) == (0, expected_stderr())
    wait_until(was_cancelled(model), "the model works for nobody")


def test_mcp_stdio_ends_when_stdout_is_closed(loopback: StartLoopback) -> None:
    model = loopback()
    with start_mcp("--server", model.url) as server:
        server.initialize()
        assert server.process.stdout is not None
        server.process.stdout.close()
        server.call(1, query="q", documents=marked_passages(1))
        assert server.process.wait(timeout=PATIENCE) == 0
        assert server.process.stderr is not None
        assert server.process.stderr.read().decode() == expected_stderr()


def test_mcp_stdio_cancels_single_call(loopback: StartLoopback) -> None:
    model = loopback(**STUCK)
    with start_busy_mcp(model) as server:
        server.send(None, {"method": "notifications/cancelled", "params": {"requestId": 1}})
        wait_until(was_cancelled(model), "the model works for nobody")
        model.change(first_token=0.001)
        server.call(2, query="q", documents=marked_passages(2))
        message = server.receive()
        assert (message["id"], indices(message)) == (2, [3, 2, 1, 0]), "of the first call nothing more is heard"
        server.process.send_signal(signal.SIGTERM)
        assert server.end(close=False) == (0, b"", expected_stderr())


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_mcp_stdio_ends_at_once_on_signal(loopback: StartLoopback, name: signal.Signals) -> None:
    model = loopback(**STUCK)
    with start_busy_mcp(model) as server:
        server.process.send_signal(name)
        assert server.end(close=False) == (0, b"", expected_stderr())
    wait_until(was_cancelled(model), "the model works for nobody")


def test_mcp_stdio_ends_on_signal_while_client_does_not_read(loopback: StartLoopback) -> None:
    with start_mcp("--server", loopback().url) as server:
        server.initialize()
        documents = ["mark:a-G1 " + "y" * 1_000_000, "mark:z-G9 last"]  # more than the pipe holds
        server.call(1, query="q", documents=documents, return_documents=True)
        assert server.process.stdout is not None
        assert server.process.stdout.peek(1), "the response has begun"  # type: ignore[attr-defined]
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=PATIENCE) == 0


def test_serve_stdio_isolates_stdin_and_stdout() -> None:
    """Neither a library nor a child process reads or writes messages."""
    program = """
import subprocess, sys
from rank_k import Reranker, ScriptedModel
from rank_k.server.mcp import serve_stdio
from rank_k.server.service import RerankService

def answer(request):
    print("printed", flush=True)
    subprocess.run(["echo", "by a child"], check=True)
    assert subprocess.run(["cat"], capture_output=True, check=True).stdout == b""
    return "[2] > [1]"

with Reranker(ScriptedModel(answer)) as reranker:
    serve_stdio(RerankService(reranker))
print("after")
"""
    with start_mcp(program=program) as server:
        server.initialize()
        server.call(1, query="q", documents=["a", "b"])
        assert indices(server.receive()) == [1, 0]
        assert server.end() == (0, b"after\n", "printed\nby a child\n")


# --- the command ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--port", "1"), "--port has no effect without --http; add --http, or leave it out"),
        (("--shutdown-timeout", "5"), "--shutdown-timeout has no effect without --http; add --http, or leave it out"),
        (("--client-key-env", "X"), "--client-key-env has no effect without --http; add --http, or leave it out"),
        (("--http", "--host", "0.0.0.0"), "everyone who can reach 0.0.0.0 could use your model; require a key"),
    ],
)
def test_mcp_reports_option_errors_in_one_line(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    assert main(["mcp", *options]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert message in err


def test_mcp_reports_missing_model_in_one_line() -> None:
    with start_mcp("--model", "no-such-weights") as server:
        code, out, err = server.end()
    assert (code, out, err.count("\n")) == (2, b"", 1)
    assert "no-such-weights" in err


@pytest.mark.slow
@needs_weights
def test_mcp_stdio_serves_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert USER_CACHE is not None
    monkeypatch.setenv("RANK_K_CACHE", str(USER_CACHE))
    with start_mcp("--method", "likelihood", "--context-length", "512") as server:
        server.initialize()
        server.call(1, query="why is the sky blue", documents=PASSAGES)
        message = server.receive()
        assert indices(message)[0] == 1
        assert sorted(indices(message)) == [0, 1, 2]
        server.call(2, query="why is the sky blue", documents=PASSAGES, reasoning="full")
        assert "which ranks by query likelihood" in server.receive()["result"]["content"][0]["text"]
        code, out, err = server.end()
    assert (code, out) == (0, b"")
    assert err.splitlines()[-1] == "rank-k mcp: stopped"
