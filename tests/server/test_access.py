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
from rank_k.server.config import AccessConfig, Limits, check_access
from rank_k.server.run import create_server
from rank_k.types import Request
from tests.conftest import StartLoopback
from tests.support.serving import Answer, Served, command, served
from tests.support.waiting import cpu_seconds

pytestmark = pytest.mark.integration

THREE = ["one", "two", "three"]
KEY, OTHER_KEY = "sk-first-0123456789", "sk-second-0123456789"
PAGE = "https://app.example.com"
LIMITS = Limits(body=2 * 2**20, characters=200_000)
HASTY = replace(LIMITS, head_seconds=0.5, body_seconds=0.7, stall_seconds=1)


def reversed_order(request: Request) -> str:
    return " > ".join(f"[{n}]" for n in range(len(request.context.doc_ids), 0, -1))


@pytest.fixture(scope="module")
def model() -> ScriptedModel:
    return ScriptedModel(reversed_order)


@pytest.fixture(scope="module")
def server(model: ScriptedModel) -> Iterator[Served]:
    with served(Reranker(model), LIMITS) as running:
        yield running
        assert running.errors == [], "nothing went wrong inside"


@pytest.fixture(scope="module")
def hasty(model: ScriptedModel) -> Iterator[Served]:
    """A server that does not wait long for slow clients."""
    with served(Reranker(model), HASTY) as running:
        yield running
        assert running.errors == [], "nothing went wrong inside"


@pytest.fixture(scope="module")
def locked() -> Iterator[Served]:
    access = AccessConfig(keys=(KEY, OTHER_KEY), hosts=frozenset({"rerank.internal"}), origins=frozenset({PAGE}))
    with served(Reranker(ScriptedModel(reversed_order)), access=access) as running:
        yield running


@pytest.fixture(autouse=True)
def everybody_else_is_still_served(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"server", "hasty"} & set(request.fixturenames):
        assert request.getfixturevalue(name).rerank(THREE).indices == [2, 1, 0]


# --- names, origins, keys ---


OWN_NAMES = ["localhost", "LOCALHOST:8787", "localhost.", "localhost.:1", "127.0.0.1:1", "[::1]:9"]


@pytest.mark.parametrize("host", OWN_NAMES)
def test_it_answers_to_its_own_names(server: Served, host: str) -> None:
    assert server.get("/health", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8787", "localhost.evil.example", "192.168.1.5", "", "[", "127.0.0.1.nip.io"]
)
def test_a_rebound_host_name_is_turned_away(server: Served, model: ScriptedModel, host: str) -> None:
    before = len(model.history)
    for answer in (
        server.get("/health", Host=host),
        server.post({"query": "rebound", "documents": THREE}, Host=host),
    ):
        assert (answer.status, answer.json["message"]) == (421, answer.json["detail"])
    assert len(model.history) == before


def test_names_may_be_allowed_and_addresses_off_loopback_are() -> None:
    access = AccessConfig("0.0.0.0", hosts=frozenset({"rerank.internal"}))
    with served(Reranker(ScriptedModel(reversed_order)), access=access) as server:
        told = {host: server.get("/health", Host=host).status for host in ("rerank.internal:80", "10.0.0.7", "evil.io")}
    assert told == {"rerank.internal:80": 200, "10.0.0.7": 200, "evil.io": 421}


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://localhost:1", "http://[", "file://"])
def test_a_page_of_another_origin_is_turned_away(server: Served, model: ScriptedModel, origin: str) -> None:
    before = len(model.history)
    answer = server.post({"query": "page", "documents": THREE}, Origin=origin)
    assert (answer.status, len(model.history)) == (403, before)
    assert "access-control-allow-origin" not in answer.headers
    assert server.ask("OPTIONS", "/v2/rerank", Origin=origin, Access_Control_Request_Method="POST").status == 403


def test_a_page_of_its_own_may_ask(server: Served) -> None:
    assert server.post({"query": "q", "documents": THREE}, Origin=server.url).status == 200


def test_a_page_that_is_allowed_may_ask(locked: Served) -> None:
    before = locked.ask("OPTIONS", "/v2/rerank", Origin=PAGE, Access_Control_Request_Method="POST")
    assert (before.status, before.headers["access-control-allow-origin"]) == (204, PAGE)
    answer = locked.post({"query": "q", "documents": THREE}, Origin=PAGE, Authorization=f"Bearer {KEY}")
    assert (answer.status, answer.headers["access-control-allow-origin"]) == (200, PAGE)
    assert locked.post({"query": "q", "documents": THREE}, Origin=PAGE).status == 401, "a key is needed all the same"


@pytest.mark.parametrize("given", [f"Bearer {KEY}", f"bearer {OTHER_KEY}", f"Bearer   {KEY} "])
def test_each_key_opens(locked: Served, given: str) -> None:
    assert locked.get("/v1/models", Authorization=given).status == 200


@pytest.mark.parametrize("given", ["", "Bearer", "Bearer x", f"Basic {KEY}", KEY, f"Bearer {KEY}x", "Bearer \xff"])
def test_anything_else_does_not(locked: Served, given: str) -> None:
    for path in ("/v1/models", "/metrics", "/openapi.json"):
        answer = locked.get(path, Authorization=given)
        assert (answer.status, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert locked.post({"query": "q", "documents": THREE}, Authorization=given).status == 401
    assert locked.get("/health", Authorization=given).status == 200, "which tells nothing"


def test_off_loopback_a_key_is_needed_or_a_word() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.com"):
        with pytest.raises(InputError, match="--api-key-env"):
            check_access(AccessConfig(host), insecure=False)
        check_access(AccessConfig(host), insecure=True)
        check_access(AccessConfig(host, keys=(KEY,)), insecure=False)
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.2"):
        check_access(AccessConfig(host), insecure=False)


@pytest.mark.parametrize(
    ("hosts", "origins"),
    [
        *(({name}, ()) for name in ("rerank.internal:80", "http://rerank.internal", "a/b", "[fe80::1]", "", "*")),
        *(((), {origin}) for origin in ("app.example.com", "null", f"{PAGE}/path", f"{PAGE}:443", "https://", "*", "")),
    ],
)
def test_what_nobody_can_come_by_is_refused(hosts: set[str], origins: set[str]) -> None:
    with pytest.raises(InputError, match="--allow-origin" if origins else "--allow-host"):
        check_access(AccessConfig(hosts=frozenset(hosts), origins=frozenset(origins)), insecure=False)


def test_names_and_origins_that_are_spelt_otherwise_are_known() -> None:
    hosts = frozenset({"Rerank.Internal.", "fe80::1", "10.0.0.7"})
    origins = frozenset({f"{PAGE}/", "http://LOCALHOST:3000", "chrome-extension://abcdef"})
    access = AccessConfig(hosts=hosts, origins=origins)
    check_access(access, insecure=False)
    with served(Reranker(ScriptedModel(reversed_order)), access=access) as server:
        for host in ("rerank.internal", "RERANK.internal.:80", "[fe80::1]:8787", "10.0.0.7"):
            assert server.get("/health", Host=host).status == 200
        for origin in (PAGE, "http://localhost:3000", "chrome-extension://abcdef"):
            assert server.get("/health", Origin=origin).status == 200


def test_an_address_that_cannot_be_had_is_told(server: Served) -> None:
    assert server.service is not None
    elsewhere = ["no.such.host.invalid", "203.0.113.9", "a..b", "a" * 64]
    for host, port in (server.address, *((host, 0) for host in elsewhere)):
        with pytest.raises(InputError, match="cannot listen"):
            create_server(server.service, AccessConfig(host), port)


# --- bodies ---


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonx"]
)
def test_what_is_posted_must_say_that_it_is_json(server: Served, model: ScriptedModel, kind: str) -> None:
    before = len(model.history)
    assert server.post({"query": "kind", "documents": THREE}, Content_Type=kind).status == 415
    assert len(model.history) == before


def test_json_may_name_its_charset(server: Served) -> None:
    asked = {"query": "q", "documents": THREE}
    assert server.post(asked, Content_Type='application/json; charset="UTF-8"').status == 200
    assert server.post(asked, Content_Type="application/json; charset=utf-16").status == 415


DEEP = b"[" * 200_000


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
        b'{"query": "q", "documents": ' + DEEP,
        b'{"query": "q", "documents": ' + DEEP + b"]" * len(DEEP) + b"}",
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
def test_what_is_no_json_object_is_refused(server: Served, raw: bytes) -> None:
    answer = server.post(raw)
    assert (answer.status, answer.json["message"]) == (400, answer.json["detail"])
    assert b"Traceback" not in answer.raw


def test_many_names_of_which_one_is_given_twice_are_refused_in_time(server: Served) -> None:
    """Eight times the names take no more than eight times as long; with quadratic time it would be 64 times."""

    def refused(count: int) -> None:
        names = ",".join(f'"n{i}":0' for i in range(count))
        answer = server.post(f'{{{names},"n{count - 1}":1}}'.encode())
        assert (answer.status, answer.json["field"]) == (400, f"n{count - 1}")

    few, many = cpu_seconds(partial(refused, 10_000), partial(refused, 80_000), rounds=3)
    assert many < 24 * few


@pytest.mark.parametrize("n", [10**400, -(10**400), 2**63])
def test_numbers_without_measure_are_refused_or_mean_all(server: Served, n: int) -> None:
    answer = server.rerank(THREE, top_n=n)
    assert answer.status == (200 if n > 0 else 422)
    assert server.rerank(THREE, reasoning=n).status == 422
    assert server.rerank(THREE, deadline_seconds=n).status == (200 if n > 0 else 422)


def test_halves_of_surrogate_pairs_come_back_as_they_were(server: Served) -> None:
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
def test_markup_comes_back_as_it_was_in_what_no_browser_takes_for_a_page(
    server: Served, path: str, fields: dict[str, Any], status: int
) -> None:
    body = {"query": MARKUP, "documents": [MARKUP, "other"], "return_documents": True, **fields}
    answer = server.post(body, path)
    kind = "text/event-stream" if fields.get("stream") else "application/json"
    assert (answer.status, answer.headers["content-type"].partition(";")[0]) == (status, kind)
    assert answer.headers["x-content-type-options"] == "nosniff"
    if status == 200:
        told = answer.events[-1][1] if fields else answer.json
        assert [result["document"]["text"] for result in told["results"]] == ["other", MARKUP]


def test_ten_thousand_passages_are_too_many(server: Served, model: ScriptedModel) -> None:
    before = len(model.history)
    answer = server.rerank(["text"] * 10_000)
    assert (answer.status, answer.json["field"], len(model.history)) == (422, "documents", before)


def test_a_passage_of_ten_megabytes_is_too_long() -> None:
    with served(Reranker(ScriptedModel(reversed_order))) as usual:
        answer = usual.rerank(["x" * 10_000_000, "short"])
        assert (answer.status, answer.json["field"]) == (422, "documents")
        answer = usual.rerank(["short"], query="x" * 10_000_000)
        assert (answer.status, answer.json["field"]) == (422, "query")
        assert usual.rerank(["x" * 3_000_000, "short"]).indices == [1, 0], "what is allowed is cut and ranked"


@pytest.mark.parametrize("chunked", [False, True], ids=["told", "chunked"])
def test_a_body_that_is_too_large_is_refused(server: Served, chunked: bool) -> None:
    with server.connect() as sock:
        head = "POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        size = LIMITS.body + 1
        if chunked:
            sock.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n{size:x}\r\n".encode() + b" " * size)
        else:
            sock.sendall(f"{head}Content-Length: {size}\r\n\r\n".encode())
        assert received(sock).startswith(b"HTTP/1.1 413 ")


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
def test_what_is_no_http_is_refused(server: Served, raw: bytes) -> None:
    with server.connect() as sock:
        sock.sendall(raw)
        answer = received(sock)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")


# --- slow ones ---


def drip(sock: socket.socket, data: bytes) -> None:
    """Send `data` a byte at a time until the other side has closed the connection; fail if it takes all of it."""
    for byte in data:
        try:
            sock.sendall(bytes([byte]))
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail(f"{len(data)} bytes were sent one at a time, and the connection is still open")


def test_a_client_that_says_nothing_or_drips_its_headers_is_cut_off(hasty: Served) -> None:
    silent, dripping = hasty.connect(), hasty.connect()
    with silent, dripping:
        drip(dripping, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 5000)
        assert received(dripping) == b""
        assert received(silent) == b""


def test_a_second_request_on_a_connection_may_not_drip_either(hasty: Served) -> None:
    with hasty.connect() as sock:
        sock.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"200 OK" in sock.recv(4096)
        drip(sock, b"G" + b"E" * 5000)


def test_a_client_that_drips_its_body_is_cut_off(hasty: Served) -> None:
    with hasty.connect() as sock:
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


def test_a_long_answer_is_not_taken_for_a_slow_client() -> None:
    def slowly(request: Request) -> str:
        time.sleep(1.2)
        return reversed_order(request)

    with served(Reranker(ScriptedModel(slowly)), HASTY) as server:
        assert server.rerank(THREE).indices == [2, 1, 0]


# --- as the command ---


def test_keys_are_nowhere_to_be_seen() -> None:
    """Neither the clients' nor the model's, whatever goes wrong."""
    env = {"CLIENTS": f"{KEY},{OTHER_KEY}", "MODELS": "sk-of-the-model", "HOME": os.environ["HOME"]}
    options = ("--api-key-env", "CLIENTS", "--server-key-env", "MODELS", "--server", "http://127.0.0.1:9/v1")
    with command(*options, "--model", "m", env=env) as running:
        answers = [
            running.served.rerank(THREE),
            running.served.get("/v1/models", Authorization=f"Bearer {KEY}"),
            running.served.post({"query": "q", "documents": THREE}, Authorization=f"Bearer {OTHER_KEY}"),
        ]
        running.process.terminate()
        code, out, err = running.end()
    assert [answer.status for answer in answers] == [401, 200, 502]
    assert code == 0
    told = out + err + "".join(answer.raw.decode() for answer in answers)
    for secret in (KEY, OTHER_KEY, "sk-of-the-model", "Traceback"):
        assert secret not in told
    assert "nobody answers at http://127.0.0.1:9/v1" in err
    assert "127.0.0.1:9" not in answers[-1].raw.decode()


NOBODY = ("--server", "http://127.0.0.1:9/v1", "--model", "m")


def test_variables_stand_for_the_address_and_the_keys() -> None:
    """As in a container, where it is the image that says on which address to listen."""
    with command(*NOBODY, env={"RANK_K_HOST": "0.0.0.0", "RANK_K_CLIENT_KEYS": KEY}) as running:
        assert running.said.startswith("rank-k serve: m, by comparison, at http://0.0.0.0:")
        assert running.served.get("/v1/models").status == 401
        assert running.served.get("/v1/models", Authorization=f"Bearer {KEY}").status == 200
    options = ("--host", "127.0.0.1", "--api-key-env", "MINE")
    with command(
        *NOBODY, *options, env={"RANK_K_HOST": "0.0.0.0", "RANK_K_CLIENT_KEYS": KEY, "MINE": OTHER_KEY}
    ) as own:
        assert " at http://127.0.0.1:" in own.said
        assert own.served.get("/v1/models", Authorization=f"Bearer {KEY}").status == 401
        assert own.served.get("/v1/models", Authorization=f"Bearer {OTHER_KEY}").status == 200


@pytest.mark.parametrize("key", ["", None])
def test_an_address_from_a_variable_needs_a_key_like_any_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str | None
) -> None:
    monkeypatch.setenv("RANK_K_HOST", "0.0.0.0")
    if key is not None:
        monkeypatch.setenv("RANK_K_CLIENT_KEYS", key)
    assert main(["serve", *NOBODY]) == 2
    assert "anybody who reaches 0.0.0.0 could spend your model's time" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["serve", "mcp"])
def test_what_is_amiss_with_the_models_key_is_not_said_of_the_clients(
    loopback: StartLoopback, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.setenv("RANK_K_API_KEY", "sk-wrong")
    for options, told in (
        (("--server", loopback(api_key="sk-right").url), "(of serve and mcp: --server-key-env)"),
        (("--server", "http://user:sk@localhost/v1"), "(of serve and mcp: --server-key-env)"),
        ((*NOBODY, "--server-key-env", "UNSET"), "leave --server-key-env out"),
        ((*NOBODY, "--server-key-env", KEY), "--server-key-env takes the name of a variable"),
    ):
        assert main([verb, *options]) == 2
        err = capsys.readouterr().err
        assert (told in err, KEY in err, err.count("\n")) == (True, False, 1), err
    if verb == "serve":
        assert main([verb, *NOBODY, "--api-key-env", "UNSET"]) == 2
        assert "leave --api-key-env out" in capsys.readouterr().err


def received(sock: socket.socket) -> bytes:
    """All that comes until the other side closes, or a whole head."""
    found = b""
    try:
        while b"\r\n\r\n" not in found and (piece := sock.recv(65_536)):
            found += piece
    except ConnectionError:
        pass
    return found


def test_the_helpers_here_read_what_is_there() -> None:
    answer = Answer(200, {}, b'event: a\ndata: {"x": 1}\n\n: waiting\n\nevent: b\ndata: {}\n\n')
    expected: list[tuple[str, Any]] = [("a", {"x": 1}), ("b", {})]
    assert answer.events == expected
    assert json.loads(b"{}") == answer.events[1][1]
