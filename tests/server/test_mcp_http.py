"""The door before the tool over HTTP: who is let in, what is taken, who is waited for, and how it is shut."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import Any

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.server.config import AccessConfig, Limits
from rank_k.server.mcp import make_mcp_app
from tests.conftest import StartLoopback
from tests.server.test_access import reversed_order
from tests.server.test_load import STUCK, has_calls, marked_passages, was_cancelled
from tests.support.serving import Answer, ServerClient, run_server, start_server
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.integration

KEY = "sk-client-0123456789"
PAGE_ORIGIN = "https://app.example.com"
VERSION = "2026-07-28"
LIMITS = Limits(max_body=2 * 2**20, max_characters=1_000_000)
IMPATIENT_LIMITS = replace(LIMITS, head_seconds=0.5, body_seconds=0.7, stall_seconds=0.5)


def call_message(version: str = VERSION, **arguments: Any) -> bytes:
    """A call of the tool, as that version of the protocol writes it."""
    params: dict[str, Any] = {"name": "rerank", "arguments": arguments}
    if version == VERSION:
        prefix = "io.modelcontextprotocol"
        params["_meta"] = {f"{prefix}/protocolVersion": version, f"{prefix}/clientCapabilities": {}}
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()


HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Mcp-Protocol-Version": VERSION,
    "Mcp-Method": "tools/call",
    "Mcp-Name": "rerank",
}


def post(server: ServerClient, body: bytes | None = None, **headers: str) -> Answer:
    request_headers = {name.replace("-", "_"): value for name, value in HEADERS.items()} | headers
    return server.send(
        "POST",
        "/mcp",
        call_message(query="q", documents=marked_passages(0)) if body is None else body,
        **request_headers,
    )


def indices(answer: Answer) -> list[int]:
    assert answer.status == 200, answer.raw
    [data_line] = [line for line in answer.raw.splitlines() if line.startswith((b"{", b"data: {"))]
    result = json.loads(data_line.removeprefix(b"data: "))["result"]
    return [row["index"] for row in result["structuredContent"]["results"]]


def open_session(server: ServerClient) -> dict[str, str]:
    """The headers of a session, as the protocol was before."""
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    body = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}).encode()
    answer = post(server, body, Mcp_Protocol_Version="2025-06-18")
    assert answer.status == 200, answer.raw
    return {"Mcp_Protocol_Version": "2025-06-18", "Mcp_Session_Id": answer.headers["mcp-session-id"]}


def open_request(server: ServerClient, body: bytes, headers: Mapping[str, str]) -> socket.socket:
    """A connection on which a request has been sent, to be left or read."""
    sock = server.connect()
    all_headers = {"Host": "localhost", "Content-Length": str(len(body)), **HEADERS, **headers}
    head = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in all_headers.items())
    sock.sendall(f"POST /mcp HTTP/1.1\r\n{head}\r\n".encode() + body)
    return sock


@pytest.fixture(scope="module")
def model() -> ScriptedModel:
    return ScriptedModel(reversed_order)


@pytest.fixture(scope="module")
def server(model: ScriptedModel) -> Iterator[ServerClient]:
    with run_server(Reranker(model), LIMITS, make=make_mcp_app) as running:
        yield running
        assert running.errors == [], "nothing went wrong inside"


@pytest.fixture(scope="module")
def impatient_server(model: ScriptedModel) -> Iterator[ServerClient]:
    """A server that does not wait long for slow clients."""
    with run_server(Reranker(model), IMPATIENT_LIMITS, make=make_mcp_app) as running:
        yield running
        assert running.errors == [], "nothing went wrong inside"


@pytest.fixture(autouse=True)
def check_server_still_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"server", "impatient_server"} & set(request.fixturenames):
        assert indices(post(request.getfixturevalue(name))) == [3, 2, 1, 0]


# --- who is let in ---


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8788", "localhost.evil.example", "192.168.1.5", ""])
def test_mcp_http_rejects_unknown_host_names(server: ServerClient, host: str) -> None:
    assert post(server, Host=host).status == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1"])
def test_mcp_http_rejects_other_origins(server: ServerClient, origin: str) -> None:
    answer = post(server, Origin=origin)
    assert answer.status == 403
    assert "access-control-allow-origin" not in answer.headers
    assert server.send("OPTIONS", "/mcp", Origin=origin, Access_Control_Request_Method="POST").status == 403


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/json; charset=x"])
def test_mcp_http_rejects_non_json_content_types(server: ServerClient, kind: str) -> None:
    assert post(server, Content_Type=kind).status == 415


def test_mcp_http_requires_key_and_allows_listed_origins() -> None:
    access = AccessConfig(keys=(KEY,), hosts=frozenset({"tools.internal"}), origins=frozenset({PAGE_ORIGIN}))
    with run_server(Reranker(ScriptedModel(reversed_order)), access=access, make=make_mcp_app) as keyed_server:
        for authorization in ("", "Bearer", f"Bearer {KEY}x", f"Basic {KEY}", KEY):
            answer = post(keyed_server, Authorization=authorization)
            assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
        preflight_headers = {"Origin": PAGE_ORIGIN, "Access_Control_Request_Method": "POST"}
        preflight = keyed_server.send(
            "OPTIONS", "/mcp", None, Access_Control_Request_Headers="mcp-session-id", **preflight_headers
        )
        assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, PAGE_ORIGIN)
        assert "Mcp-Session-Id" in preflight.headers["access-control-allow-headers"]
        assert "DELETE" in preflight.headers["access-control-allow-methods"]
        answer = post(keyed_server, Authorization=f"Bearer {KEY}", Origin=PAGE_ORIGIN, Host="tools.internal")
        assert indices(answer) == [3, 2, 1, 0]
        assert answer.headers["access-control-expose-headers"] == "mcp-session-id"


# --- what is taken ---


def test_mcp_http_serves_only_mcp_path(server: ServerClient) -> None:
    assert server.send("POST", "/v2/rerank", b"{}", Content_Type="application/json").status == 404
    assert server.get("/").status == 404
    answer = server.get("/mcp", Accept="text/event-stream")
    assert (answer.status, set(answer.headers["allow"].split(", "))) == (405, {"POST", "DELETE"}), (
        "no stream to listen on"
    )


def test_mcp_http_supports_both_protocol_versions(server: ServerClient) -> None:
    assert indices(post(server)) == [3, 2, 1, 0]
    session = open_session(server)
    session_message = call_message("2025-06-18", query="q", documents=marked_passages(0))
    assert indices(post(server, session_message, **session)) == [3, 2, 1, 0]
    assert server.send("DELETE", "/mcp", None, **session).status == 200
    assert post(server, session_message, **session).status == 404, "the session is over"


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"jsonrpc": "2.0"}', b'{"jsonrpc": "2.0", "id": 1}', b"null"],
)
@pytest.mark.parametrize("version", [VERSION, "2025-06-18", "1999-01-01"])
def test_mcp_http_rejects_malformed_messages(server: ServerClient, raw: bytes, version: str) -> None:
    assert post(server, raw, Mcp_Protocol_Version=version).status == 400


def test_mcp_http_replaces_lone_surrogates(server: ServerClient) -> None:
    answer = post(server, call_message(query="q", documents=["\ud800 a", "b"], return_documents=True))
    assert indices(answer) == [1, 0]
    assert answer.json["result"]["structuredContent"]["results"][1]["text"] == "\ufffd a"


@pytest.mark.parametrize("version", [VERSION, "2025-06-18"])
def test_mcp_http_rejects_oversized_bodies(server: ServerClient, version: str) -> None:
    with open_request(
        server, b"", {"Content-Length": str(LIMITS.max_body + 1), "Mcp-Protocol-Version": version}
    ) as sock:
        response = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert response.startswith(b"HTTP/1.1 413 ")
    assert b"the body is larger than 2,097,152 bytes" in response


# --- who is waited for ---


def test_mcp_http_times_out_slow_bodies(impatient_server: ServerClient) -> None:
    with open_request(impatient_server, b"{", {"Content-Length": "100"}) as sock:
        assert sock.recv(65_536).startswith(b"HTTP/1.1 408 ")


def test_mcp_http_closes_silent_connections(impatient_server: ServerClient) -> None:
    with impatient_server.connect() as sock:
        assert sock.recv(1) == b""


@pytest.mark.parametrize("version", [VERSION, "2025-06-18"])
def test_mcp_http_disconnect_cancels_model_call(loopback: StartLoopback, version: str) -> None:
    model = loopback(**STUCK)
    with run_server(Reranker(server=model.url), make=make_mcp_app) as server:
        headers = {} if version == VERSION else open_session(server)
        body = call_message(version, query="q", documents=marked_passages(0))
        with open_request(server, body, {name.replace("_", "-"): value for name, value in headers.items()}):
            wait_until(has_calls(model), "nothing is asked")
        wait_until(was_cancelled(model), "the model works for nobody")
        assert server.service is not None
        wait_until(lambda: server.service.queue.running == 0, "its place is not given back")  # type: ignore[union-attr]
        model.change(first_token=0.001)
        assert indices(post(server, body, **headers)) == [3, 2, 1, 0]
        assert server.errors == []


@pytest.mark.parametrize("version", [VERSION, "2025-06-18"])
def test_mcp_http_closes_connections_that_do_not_read(loopback: StartLoopback, version: str) -> None:
    model, size = loopback(), 16_000_000  # more than the system's buffers hold
    limits = Limits(max_characters=2 * size, max_body=2 * size, head_seconds=0.5, stall_seconds=0.5)
    with run_server(Reranker(server=model.url), limits, make=make_mcp_app) as server:
        headers = {} if version == VERSION else open_session(server)
        documents = ["mark:a-G1 " + "y" * size, "mark:z-G9 last"]
        body = call_message(version, query="q", documents=documents, return_documents=True)
        with open_request(server, body, {name.replace("_", "-"): value for name, value in headers.items()}) as sock:
            wait_until(lambda: len(model.calls) == 1 and model.calls[0].end is not None, "no answer")
            wait_until(lambda: not server.is_connected(sock), "the connection is kept for a reader that does not read")
            received_bytes = 0
            try:
                while chunk := sock.recv(65_536):
                    received_bytes += len(chunk)
            except ConnectionError:
                pass
            assert received_bytes < size, "all of it was kept for who did not read"


# --- how it is shut ---


@pytest.mark.parametrize("version", [VERSION, "2025-06-18"])
def test_mcp_http_finishes_running_calls_on_signal(loopback: StartLoopback, version: str) -> None:
    model = loopback(first_token=3.0)
    options = (
        "--http",
        "--server",
        model.url,
        "--concurrency",
        "1",
        "--queue",
        "1",
        "--shutdown-timeout",
        str(PATIENCE),
    )
    with start_server(*options, verb="mcp") as running, ThreadPoolExecutor(3) as pool:
        server = ServerClient(running.served.url.removesuffix("/mcp"))
        assert running.served.url.endswith("/mcp")
        headers = {} if version == VERSION else open_session(server)
        bodies = [call_message(version, query="q", documents=marked_passages(number)) for number in (1, 2, 3)]
        first = pool.submit(post, server, bodies[0], **headers)
        wait_until(has_calls(model), "nothing is asked")
        # There is room for one to wait in. That one of two is refused shows that the other waits for its turn.
        others = [pool.submit(post, server, body, **(headers and open_session(server))) for body in bodies[1:]]
        refused = next(as_completed(others))
        assert b"the queue is full (1 waiting)" in refused.result().raw
        running.signal(signal.SIGTERM)
        assert indices(first.result()) == [3, 2, 1, 0]
        [waiting] = set(others) - {refused}
        assert b"the server is stopping" in waiting.result().raw
        code, _, err = running.end()
    assert (code, err.strip()) == (0, "rank-k mcp: stopped")
    assert len(model.calls) == 1


def test_mcp_http_never_prints_keys(loopback: StartLoopback) -> None:
    model = loopback(api_key="sk-model-9876543210")
    env = {"CLIENT_KEY": KEY, "MODEL_KEY": "sk-model-9876543210"}
    options = ("--http", "--server", model.url, "--api-key-env", "MODEL_KEY", "--client-key-env", "CLIENT_KEY")
    with start_server(*options, verb="mcp", env=env) as running:
        server = ServerClient(running.served.url.removesuffix("/mcp"))
        assert indices(post(server, Authorization=f"Bearer {KEY}")) == [3, 2, 1, 0]
        answer = post(server, Authorization="Bearer sk-guess-0000000000")
        assert answer.status == 401
        running.signal(signal.SIGTERM)
        code, out, err = running.end()
    output = out + err + answer.raw.decode()
    assert code == 0
    assert not [secret for secret in ("sk-model", "sk-client", "sk-guess") if secret in output]
