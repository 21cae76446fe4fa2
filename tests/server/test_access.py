"""Who is let in, what is taken from them, and what hostile clients get: a clean refusal or the right answer."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

from rank_k import Reranker, ScriptedModel
from rank_k.cli import main
from rank_k.errors import InputError
from rank_k.server.app import make_app
from rank_k.server.config import AccessConfig, Limits, check_access
from rank_k.server.run import create_server
from rank_k.types import Request
from tests.conftest import StartLoopback
from tests.support.serving import Answer, ServerClient, run_server, start_server
from tests.support.waiting import cpu_seconds

pytestmark = pytest.mark.integration

DOCUMENTS = ["one", "two", "three"]
KEY, OTHER_KEY = "sk-first-0123456789", "sk-second-0123456789"
PAGE_ORIGIN = "https://app.example.com"
LIMITS = Limits(max_body=2 * 2**20, max_characters=200_000)
IMPATIENT_LIMITS = replace(LIMITS, head_seconds=0.5, body_seconds=0.7, stall_seconds=1)


def reversed_order(request: Request) -> str:
    return " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))


@pytest.fixture(scope="module")
def model() -> ScriptedModel:
    return ScriptedModel(reversed_order)


@pytest.fixture(scope="module")
def server(model: ScriptedModel) -> Iterator[ServerClient]:
    with run_server(Reranker(model), LIMITS) as running:
        yield running
        assert running.errors == [], "nothing went wrong inside"


@pytest.fixture(scope="module")
def impatient_server(model: ScriptedModel) -> Iterator[ServerClient]:
    """A server that does not wait long for slow clients."""
    with run_server(Reranker(model), IMPATIENT_LIMITS) as running:
        yield running
        assert running.errors == [], "nothing went wrong inside"


@pytest.fixture(scope="module")
def keyed_server() -> Iterator[ServerClient]:
    access = AccessConfig(keys=(KEY, OTHER_KEY), hosts=frozenset({"rerank.internal"}), origins=frozenset({PAGE_ORIGIN}))
    with run_server(Reranker(ScriptedModel(reversed_order)), access=access) as running:
        yield running


@pytest.fixture(autouse=True)
def check_server_still_answers(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"server", "impatient_server"} & set(request.fixturenames):
        assert request.getfixturevalue(name).rerank(DOCUMENTS).indices == [2, 1, 0]


# --- names, origins, keys ---


LOOPBACK_HOST_NAMES = ["localhost", "LOCALHOST:8787", "localhost.", "localhost.:1", "127.0.0.1:1", "[::1]:9"]


@pytest.mark.parametrize("host", LOOPBACK_HOST_NAMES)
def test_server_accepts_loopback_host_names(server: ServerClient, host: str) -> None:
    assert server.get("/health", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8787", "localhost.evil.example", "192.168.1.5", "", "[", "127.0.0.1.nip.io"]
)
def test_server_rejects_unknown_host_names(server: ServerClient, model: ScriptedModel, host: str) -> None:
    calls_before = len(model.history)
    for answer in (
        server.get("/health", Host=host),
        server.post({"query": "rebound", "documents": DOCUMENTS}, Host=host),
    ):
        assert (answer.status, answer.json["message"]) == (421, answer.json["detail"])
    assert len(model.history) == calls_before


def test_access_config_allows_hosts_and_ip_addresses() -> None:
    access = AccessConfig("0.0.0.0", hosts=frozenset({"rerank.internal"}))
    with run_server(Reranker(ScriptedModel(reversed_order)), access=access) as server:
        statuses = {
            host: server.get("/health", Host=host).status for host in ("rerank.internal:80", "10.0.0.7", "evil.io")
        }
    assert statuses == {"rerank.internal:80": 200, "10.0.0.7": 200, "evil.io": 421}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://[", "file://"])
def test_server_rejects_other_origins(server: ServerClient, model: ScriptedModel, origin: str) -> None:
    calls_before = len(model.history)
    answer = server.post({"query": "page", "documents": DOCUMENTS}, Origin=origin)
    assert (answer.status, len(model.history)) == (403, calls_before)
    assert "access-control-allow-origin" not in answer.headers
    assert server.send("OPTIONS", "/v2/rerank", Origin=origin, Access_Control_Request_Method="POST").status == 403


def test_server_accepts_its_own_origin(server: ServerClient) -> None:
    assert server.post({"query": "q", "documents": DOCUMENTS}, Origin=server.url).status == 200


def test_access_config_allows_listed_origins(keyed_server: ServerClient) -> None:
    preflight = keyed_server.send("OPTIONS", "/v2/rerank", Origin=PAGE_ORIGIN, Access_Control_Request_Method="POST")
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (204, PAGE_ORIGIN)
    answer = keyed_server.post(
        {"query": "q", "documents": DOCUMENTS}, Origin=PAGE_ORIGIN, Authorization=f"Bearer {KEY}"
    )
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE_ORIGIN)
    assert keyed_server.post({"query": "q", "documents": DOCUMENTS}, Origin=PAGE_ORIGIN).status == 401, (
        "a key is needed all the same"
    )


@pytest.mark.parametrize("authorization", [f"Bearer {KEY}", f"bearer {OTHER_KEY}", f"Bearer   {KEY} "])
def test_server_accepts_each_client_key(keyed_server: ServerClient, authorization: str) -> None:
    assert keyed_server.get("/v1/models", Authorization=authorization).status == 200


@pytest.mark.parametrize(
    "authorization", ["", "Bearer", "Bearer x", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"]
)
def test_server_rejects_wrong_client_keys(keyed_server: ServerClient, authorization: str) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        answer = keyed_server.get(path, Authorization=authorization)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert keyed_server.post({"query": "q", "documents": DOCUMENTS}, Authorization=authorization).status == 401
    assert keyed_server.get("/health", Authorization=authorization).status == 200, "which tells nothing"


def test_check_access_requires_key_or_insecure_off_loopback() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
        with pytest.raises(InputError, match="--client-key-env"):
            check_access(AccessConfig(host), insecure=False)
        check_access(AccessConfig(host), insecure=True)
        check_access(AccessConfig(host, keys=(KEY,)), insecure=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        check_access(AccessConfig(host), insecure=False)


@pytest.mark.parametrize(
    ("hosts", "origins"),
    [
        *(({name}, ()) for name in ("rerank.internal:80", "http://rerank.internal", "a/b", "[fe80::1]", "", "*")),
        *(
            ((), {origin})
            for origin in ("app.example.com", "null", f"{PAGE_ORIGIN}/path", f"{PAGE_ORIGIN}:443", "https://", "*", "")
        ),
    ],
)
def test_check_access_rejects_invalid_hosts_and_origins(hosts: set[str], origins: set[str]) -> None:
    with pytest.raises(InputError, match="--allow-origin" if origins else "--allow-host"):
        check_access(AccessConfig(hosts=frozenset(hosts), origins=frozenset(origins)), insecure=False)


def test_access_config_normalizes_hosts_and_origins() -> None:
    hosts = frozenset({"Rerank.Internal.", "fe80::1", "10.0.0.7"})
    origins = frozenset({f"{PAGE_ORIGIN}/", "http://LOCALHOST:3000", "chrome-extension://abcdef"})
    access = AccessConfig(hosts=hosts, origins=origins)
    check_access(access, insecure=False)
    with run_server(Reranker(ScriptedModel(reversed_order)), access=access) as server:
        for host in ("rerank.internal", "RERANK.internal.:80", "[fe80::1]:8787", "10.0.0.7"):
            assert server.get("/health", Host=host).status == 200
        for origin in (PAGE_ORIGIN, "http://localhost:3000", "chrome-extension://abcdef"):
            assert server.get("/health", Origin=origin).status == 200


def test_create_server_reports_unavailable_addresses(server: ServerClient) -> None:
    assert server.service is not None
    elsewhere = ["no.such.host.invalid", "203.0.113.9", "a..b", "a" * 64]
    for host, port in (server.address, *((host, 0) for host in elsewhere)):
        with pytest.raises(InputError, match="cannot listen"):
            create_server(server.service, make_app(server.service), host, port)


# --- bodies ---


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
)
def test_server_rejects_non_json_content_types(server: ServerClient, model: ScriptedModel, kind: str) -> None:
    calls_before = len(model.history)
    assert server.post({"query": "kind", "documents": DOCUMENTS}, Content_Type=kind).status == 415
    assert len(model.history) == calls_before


def test_server_accepts_only_utf8_charset(server: ServerClient) -> None:
    body = {"query": "q", "documents": DOCUMENTS}
    assert server.post(body, Content_Type='application/json; charset="UTF-8"').status == 200
    assert server.post(body, Content_Type="application/json; charset=utf-16").status == 415


NESTED_ARRAY = b"[" * 200_000


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b'{"query": "q", "documents": ["\xff\xfe"]}',
        b"\xff" * 100,
        '{"query": "q"}'.encode("utf-16"),
        b'{"query": "q", "documents": ' + NESTED_ARRAY,
        b'{"query": "q", "documents": ' + NESTED_ARRAY + b"]" * len(NESTED_ARRAY) + b"}",
        b'{"a":' * 100_000,
        b'{"query": "q", "documents": ["a"], "top_n": NaN}',
        b'{"query": "q", "documents": ["a"], "ignored": Infinity}',
        b'{"query": "q", "documents": ["a"], "ignored": -Infinity}',
        b'{"query": "q", "documents": ["a"], "top_n": 1e999}',
        b'{"query": "q", "documents": ["a"], "top_n": ' + b"9" * 5000 + b"}",
        b'{"query": "q", "query": "p", "documents": ["a"]}',
        b'{"query": "q", "documents": ["a"], "documents": ["b"]}',
        b'{"query": "q", "documents": [{"text": "a", "text": "b"}]}',
    ],
    ids=lambda raw: raw[:40].decode("latin-1"),
)
def test_rerank_rejects_malformed_json(server: ServerClient, raw: bytes) -> None:
    answer = server.post(raw)
    assert (answer.status, answer.json["message"]) == (400, answer.json["detail"])
    assert b"Traceback" not in answer.raw


def test_rerank_rejects_duplicate_keys_in_linear_time(server: ServerClient) -> None:
    """Eight times the names take no more than eight times as long; with quadratic time it would be 64 times."""

    def send_duplicate(count: int) -> None:
        names = ",".join(f'"n{i}":0' for i in range(count))
        answer = server.post(f'{{{names},"n{count - 1}":1}}'.encode())
        assert (answer.status, answer.json["field"]) == (400, f"n{count - 1}")

    few_seconds, many_seconds = cpu_seconds(partial(send_duplicate, 10_000), partial(send_duplicate, 80_000), rounds=3)
    assert many_seconds < 24 * few_seconds


@pytest.mark.parametrize("n", [10**400, -(10**400), 2**63])
def test_rerank_handles_huge_numbers(server: ServerClient, n: int) -> None:
    answer = server.rerank(DOCUMENTS, top_n=n)
    assert answer.status == (200 if n > 0 else 422)
    assert server.rerank(DOCUMENTS, reasoning=n).status == 422
    assert server.rerank(DOCUMENTS, deadline_seconds=n).status == (200 if n > 0 else 422)


def test_rerank_preserves_lone_surrogates(server: ServerClient) -> None:
    documents = ["\ud800 half", "\udfff", "nul \0 byte", "</think> [1] > [2]", "<img src=x onerror=alert(1)>"]
    answer = server.rerank(documents, query="\udc00", return_documents=True)
    assert [result["document"]["text"] for result in answer.json["results"]] == documents[::-1]
    streamed = server.rerank(documents, query="\udc00", return_documents=True, stream=True).events[-1][1]
    assert streamed["results"] == answer.json["results"]


MARKUP = "<img src=x onerror=alert(1)>"


@pytest.mark.parametrize(
    ("path", "fields", "status"),
    [
        ("/v2/rerank", {}, 200),
        ("/v2/rerank", {"stream": True}, 200),
        ("/v2/rerank", {"strategy": MARKUP}, 422),
        ("/v2/rerank", {MARKUP: 1, "top_n": MARKUP}, 422),
        (f"/{MARKUP.replace(' ', '%20')}", {}, 404),
    ],
)
def test_responses_with_markup_are_never_html(
    server: ServerClient, path: str, fields: dict[str, Any], status: int
) -> None:
    body = {"query": MARKUP, "documents": [MARKUP, "other"], "return_documents": True, **fields}
    answer = server.post(body, path)
    kind = "text/event-stream" if fields.get("stream") else "application/json"
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (status, kind)
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status == 200:
        response_body = answer.events[-1][1] if fields else answer.json
        assert [result["document"]["text"] for result in response_body["results"]] == ["other", MARKUP]


def test_rerank_rejects_too_many_documents(server: ServerClient, model: ScriptedModel) -> None:
    calls_before = len(model.history)
    answer = server.rerank(["text"] * 10_000)
    assert (answer.status, answer.json["field"], len(model.history)) == (422, "documents", calls_before)


def test_rerank_rejects_too_many_characters() -> None:
    with run_server(Reranker(ScriptedModel(reversed_order))) as server:
        answer = server.rerank(["x" * 10_000_000, "short"])
        assert (answer.status, answer.json["field"]) == (422, "documents")
        answer = server.rerank(["short"], query="x" * 10_000_000)
        assert (answer.status, answer.json["field"]) == (422, "query")
        assert server.rerank(["x" * 3_000_000, "short"]).indices == [1, 0], "what is allowed is cut and ranked"


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
def test_rerank_rejects_oversized_bodies(server: ServerClient, chunked: bool) -> None:
    with server.connect() as sock:
        head = "POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        size = LIMITS.max_body + 1
        if chunked:
            sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode() + b" " * size)
        else:
            sock.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
        assert receive_head(sock).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    "raw",
    [
        b"nonsense\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n",
        b"POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
    ids=lambda raw: raw[:45].decode("latin-1"),
)
def test_server_rejects_malformed_http(server: ServerClient, raw: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(raw)
        answer = receive_head(sock)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


# --- slow ones ---


def send_slowly(sock: socket.socket, data: bytes) -> None:
    """Send `data` a byte at a time until the other side has closed the connection; fail if it takes all of it."""
    for byte in data:
        try:
            sock.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail(f"{len(data)} bytes were sent one at a time, and the connection is still open")


def test_server_closes_connections_with_slow_headers(impatient_server: ServerClient) -> None:
    silent, dripping = impatient_server.connect(), impatient_server.connect()
    with silent, dripping:
        send_slowly(dripping, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 5000)
        assert receive_head(dripping) == b""
        assert receive_head(silent) == b""


def test_server_closes_keep_alive_connections_with_slow_headers(impatient_server: ServerClient) -> None:
    with impatient_server.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
        send_slowly(sock, b"G" + b"E" * 5000)


def test_server_times_out_slow_bodies(impatient_server: ServerClient) -> None:
    with impatient_server.connect() as sock:
        sock.sendall(
            b"POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 100000\r\n\r\n"
        )
        sock.settimeout(0.05)
        answer = b""
        for _ in range(5000):
            sock.sendall(b" ")
            with suppress(TimeoutError):
                answer = sock.recv(4096)
                break
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_server_does_not_time_out_slow_rankings() -> None:
    def answer_slowly(request: Request) -> str:
        time.sleep(1.2)
        return reversed_order(request)

    with run_server(Reranker(ScriptedModel(answer_slowly)), IMPATIENT_LIMITS) as server:
        assert server.rerank(DOCUMENTS).indices == [2, 1, 0]


# --- as the command ---


def test_serve_never_prints_keys() -> None:
    """Neither the clients' nor the model's, whatever goes wrong."""
    env = {"CLIENTS": f"{KEY},{OTHER_KEY}", "MODELS": "sk-of-the-model", "HOME": os.environ["HOME"]}
    options = ("--client-key-env", "CLIENTS", "--api-key-env", "MODELS", "--server", "http://127.0.0.1:9/v1")
    with start_server(*options, "--model", "m", env=env) as running:
        answers = [
            running.served.rerank(DOCUMENTS),
            running.served.get("/v1/models", Authorization=f"Bearer {KEY}"),
            running.served.post({"query": "q", "documents": DOCUMENTS}, Authorization=f"Bearer {OTHER_KEY}"),
        ]
        running.process.terminate()
        code, out, err = running.end()
    assert [answer.status for answer in answers] == [401, 200, 502]
    assert code == 0
    output = out + err + "".join(answer.raw.decode() for answer in answers)
    for secret in (KEY, OTHER_KEY, "sk-of-the-model", "Traceback"):
        assert secret not in output
    assert "no server responds at http://127.0.0.1:9/v1" in err
    assert "127.0.0.1:9" not in answers[-1].raw.decode()


UNREACHABLE_MODEL_OPTIONS = ("--server", "http://127.0.0.1:9/v1", "--model", "m")


def test_serve_reads_host_and_keys_from_environment() -> None:
    """As in a container, where it is the image that says on which address to listen."""
    with start_server(*UNREACHABLE_MODEL_OPTIONS, env={"RANK_K_HOST": "0.0.0.0", "RANK_K_CLIENT_KEYS": KEY}) as running:
        assert running.first_line.startswith("rank-k serve: m (listwise): web page and API at http://0.0.0.0:")
        assert running.served.get("/v1/models").status == 401
        assert running.served.get("/v1/models", Authorization=f"Bearer {KEY}").status == 200
    options = ("--host", "127.0.0.1", "--client-key-env", "MINE")
    with start_server(
        *UNREACHABLE_MODEL_OPTIONS,
        *options,
        env={"RANK_K_HOST": "0.0.0.0", "RANK_K_CLIENT_KEYS": KEY, "MINE": OTHER_KEY},
    ) as with_options:
        assert " at http://127.0.0.1:" in with_options.first_line
        assert with_options.served.get("/v1/models", Authorization=f"Bearer {KEY}").status == 401
        assert with_options.served.get("/v1/models", Authorization=f"Bearer {OTHER_KEY}").status == 200


@pytest.mark.parametrize("key", ["", None])
def test_serve_requires_key_for_host_from_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str | None
) -> None:
    monkeypatch.setenv("RANK_K_HOST", "0.0.0.0")
    if key is not None:
        monkeypatch.setenv("RANK_K_CLIENT_KEYS", key)
    assert main(["serve", *UNREACHABLE_MODEL_OPTIONS]) == 2
    assert "everyone who can reach 0.0.0.0 could use your model" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["serve", "mcp"])
def test_key_errors_name_the_right_option(
    loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setenv("RANK_K_API_KEY", "sk-wrong")
    for options, message in (
        (("--server", loopback(api_key="sk-right").url), "--api-key-env"),
        (("--server", "http://user:sk@localhost/v1"), "--api-key-env"),
        ((*UNREACHABLE_MODEL_OPTIONS, "--api-key-env", "UNSET"), "leave --api-key-env out"),
        ((*UNREACHABLE_MODEL_OPTIONS, "--api-key-env", KEY), "--api-key-env takes the name of a variable"),
    ):
        assert main([verb, *options]) == 2
        err = capsys.readouterr().err
        assert (message in err, KEY in err, err.count("\n")) == (True, False, 1), err
    if verb == "serve":
        assert main([verb, *UNREACHABLE_MODEL_OPTIONS, "--client-key-env", "UNSET"]) == 2
        assert "leave --client-key-env out" in capsys.readouterr().err


def receive_head(sock: socket.socket) -> bytes:
    """All that comes until the other side closes, or a whole head."""
    data = b""
    try:
        while b"\r\n\r\n" not in data and (chunk := sock.recv(65_536)):
            data += chunk
    except ConnectionError:
        pass
    return data


def test_answer_events_parse_the_stream() -> None:
    answer = Answer(200, {}, b'event: a\ndata: {"x": 1}\n\n: waiting\n\nevent: b\ndata: {}\n\n')
    expected: list[tuple[str, Any]] = [("a", {"x": 1}), ("b", {})]
    assert answer.events == expected
    assert json.loads(b"{}") == answer.events[1][1]
