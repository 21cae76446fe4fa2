"""The embedded model's server: what it serves and to whom, and that it ends when it should."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from rank_k.errors import FormatError, InputError, MissingExtra
from rank_k.models import launch
from rank_k.models.launch import EmbeddedServer, available_cores
from rank_k.models.weights import NAMED, Weights
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.embedded

_ROW = NAMED["smollm2-135m-instruct"]
WEIGHTS = Weights(
    _ROW.name, _ROW.path, _ROW.sha256, _ROW.context_length
)  # in the user's own cache, found before it is hidden
real = pytest.mark.skipif(not WEIGHTS.path.exists(), reason="needs the weights that `rank-k fetch` gets")
posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups of POSIX")


def start(weights: Weights = WEIGHTS, **options: Any) -> EmbeddedServer:
    return asyncio.run(EmbeddedServer.start(weights, **options))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    running = start(context_length=512, slots=2)
    yield running
    asyncio.run(running.close())


def call(server: EmbeddedServer, path: str, body: Any = None, *, key: str | None = "own") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {server.api_key if key == 'own' else key}"
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


CHAT = "/v1/chat/completions"


def question(text: str = "Name an animal.", **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0, **options}


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # dead; whoever adopted it has not looked yet
    except psutil.NoSuchProcess:
        return True


def wait_for_end(pid: int) -> None:
    until(lambda: has_ended(pid), f"process {pid} is still running")


def cpu_seconds_until_idle(pid: int) -> float:
    """Wait until the process uses no processor; return the seconds of it that it has used since it began."""
    process = psutil.Process(pid)

    def is_idle() -> bool:
        before = process.cpu_times().user
        time.sleep(0.5)
        return process.cpu_times().user == before

    until(is_idle, f"process {pid} is never idle")
    return float(process.cpu_times().user)


@real
def test_it_answers_whoever_has_the_key_and_no_one_else(server: EmbeddedServer) -> None:
    status, models = call(server, "/v1/models")
    assert (status, models["data"][0]["id"], models["data"][0]["owned_by"]) == (200, WEIGHTS.name, "llamacpp")
    status, answer = call(server, CHAT, question())
    assert status == 200
    assert answer["choices"][0]["message"]["content"]
    for key in (None, "guessed", server.api_key[:-1]):
        for path, body in ((CHAT, question()), ("/v1/models", None), ("/tokenize", {"content": "x"}), ("/props", None)):
            assert call(server, path, body, key=key)[0] == 401


@real
def test_slots_metrics_and_pages_are_off(server: EmbeddedServer) -> None:
    assert [call(server, path)[0] for path in ("/slots", "/metrics", "/", "/index.html")] == [501, 501, 404, 404]
    assert call(server, "/props", {})[0] == 501


@real
def test_no_page_of_the_web_may_read_it(server: EmbeddedServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("OPTIONS", CHAT, headers={"Origin": "http://page.example"})
        response = connection.getresponse()
        response.read()
    assert response.getheader("Access-Control-Allow-Origin") in (None, "")


@real
def test_it_listens_on_loopback_alone_and_the_key_is_in_no_command_line(server: EmbeddedServer) -> None:
    process = psutil.Process(server._process.pid)
    listening = [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    assert server.api_key not in " ".join(process.cmdline())
    assert server.api_key not in " ".join(process.environ().values())
    assert len(server.api_key) >= 32


@real
def test_context_is_per_slot(server: EmbeddedServer) -> None:
    assert server.context_length == 512
    status, refused = call(server, CHAT, question("word " * 600))
    assert (status, refused["error"]["n_ctx"]) == (400, 512)
    # 256 would be each slot's part, were the 512 shared between the two
    status, answer = call(server, CHAT, question("word " * 400))
    assert status == 200
    assert 400 < answer["usage"]["prompt_tokens"] <= 512


@real
def test_a_former_prompt_is_not_computed_again(server: EmbeddedServer) -> None:
    text = "A long and rather peculiar introduction to a question about herons. " * 8
    first = call(server, CHAT, question(text + "One."))[1]["usage"]
    again = call(server, CHAT, question(text + "Two."))[1]["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] > first["prompt_tokens"] * 0.8


@real
def test_hanging_up_frees_the_slot(server: EmbeddedServer) -> None:
    """Nobody reads more than the first word of two answers: they cost less than they would in full.

    What they would cost, four times as much, is measured by an answer of half the length that is read.
    """
    long = question(max_tokens=200, ignore_eos=True)
    endless = json.dumps({**long, "max_tokens": 400, "stream": True}).encode()
    address = urlsplit(server.url)
    before = cpu_seconds_until_idle(server._process.pid)
    assert call(server, CHAT, long)[0] == 200
    read = cpu_seconds_until_idle(server._process.pid)
    for _ in range(2):  # both slots
        with socket.create_connection((address.hostname, address.port or 0)) as caller:
            caller.sendall(
                f"POST {CHAT} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {server.api_key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(endless)}\r\n\r\n".encode()
                + endless
            )
            received = b""
            while b'"content":"' not in received:
                received += caller.recv(65536)
    assert call(server, CHAT, question())[0] == 200
    left = cpu_seconds_until_idle(server._process.pid)
    assert left - read < 2.5 * (read - before), "nothing goes on in the background"


@real
def test_no_more_context_than_the_weights_were_trained_for_and_several_at_once() -> None:
    async def main() -> None:
        one, two = await asyncio.gather(
            EmbeddedServer.start(WEIGHTS, context_length=20_000, threads=1),
            EmbeddedServer.start(WEIGHTS, context_length=300),
        )
        try:
            assert one.context_length == WEIGHTS.context_length
            assert two.context_length >= 300
            assert one.url != two.url
            assert call(one, "/v1/models", key=two.api_key)[0] == 401
            assert call(two, CHAT, question())[0] == 200
            await one.close()
            await one.close()
            assert one.failure is None
            assert call(two, CHAT, question())[0] == 200
        finally:
            await one.close()
            await two.close()

    asyncio.run(main())


def write_adapter(path: Path, width: int) -> None:
    """A LoRA adapter of rank 1 on one projection, as GGUF, version 3."""

    def text(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    facts = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    tensors = {"blk.0.attn_v.weight.lora_a": (width, 1), "blk.0.attn_v.weight.lora_b": (1, 192)}
    raw = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(facts) + 1)
    for key, value in facts.items():
        raw += text(key) + struct.pack("<I", 8) + text(value)
    raw += text("adapter.lora.alpha") + struct.pack("<If", 6, 1.0)
    data = b""
    for name, shape in tensors.items():
        raw += text(name) + struct.pack("<IQQIQ", 2, *shape, 0, len(data))
        data += struct.pack("<f", 0.3) * (shape[0] * shape[1])
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(raw + b"\0" * (-len(raw) % 32) + data)


@real
def test_an_adapter_changes_the_answers_and_the_identity(tmp_path: Path, server: EmbeddedServer) -> None:
    asked = question(logprobs=True, top_logprobs=1)
    plain = call(server, CHAT, asked)[1]["choices"][0]["logprobs"]["content"][0]["logprob"]
    adapter = tmp_path / "adapter.gguf"
    write_adapter(adapter, 576)
    adapted = start(context_length=512, adapter=adapter)
    try:
        changed = call(adapted, CHAT, asked)[1]["choices"][0]["logprobs"]["content"][0]["logprob"]
    finally:
        asyncio.run(adapted.close())
    assert abs(changed - plain) > 0.01
    assert server.identity == WEIGHTS.sha256
    weights, _, adapters = adapted.identity.partition("+")
    assert weights == WEIGHTS.sha256
    assert len(adapters) == 64

    write_adapter(adapter, 577)
    with pytest.raises(InputError, match="could not start with") as caught:
        start(adapter=adapter)
    assert "adapter.gguf" in str(caught.value)
    adapter.write_bytes(b"junk")
    with pytest.raises(FormatError, match="not a GGUF file"):
        start(adapter=adapter)


@real
def test_broken_weights_are_an_error_in_the_servers_own_words(tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    with WEIGHTS.path.open("rb") as whole:
        cut.write_bytes(whole.read(20_000_000))
    with pytest.raises(InputError, match=r"cut\.gguf.*corrupted or incomplete.*; ") as caught:
        start(Weights("cut", cut, "0" * 64))
    assert "\n" not in str(caught.value)


def test_without_xllamacpp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra, match=r"rank-k\[embedded\]"):
        start()


@pytest.mark.parametrize("options", [{"context": 0}, {"slots": 0}, {"threads": -1}])
def test_senseless_options(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        start(**options)


PARENT = """
import asyncio, os, signal, sys, time
from pathlib import Path
from rank_k.models.launch import EmbeddedServer
from rank_k.models.weights import Weights
from tests.models.test_launch import CHAT, call, question
server = asyncio.run(EmbeddedServer.start(Weights("weights", Path(sys.argv[2]), "0" * 64), context=512))
def interrupted(*_):
    print(call(server, CHAT, question())[0], flush=True)
    asyncio.run(server.close())
    os._exit(0)
signal.signal(signal.SIGINT, interrupted)
forked = os.fork() if sys.argv[1] == "fork" else None
if forked == 0:
    os.close(1)
    time.sleep(600)  # a copy that keeps all pipes open
    os._exit(0)
print(server._process.pid, forked or 0, flush=True)
if sys.argv[1] != "leave":
    time.sleep(600)
"""


@contextlib.contextmanager
def parent(mode: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, mode, WEIGHTS.path], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@real
@posix
@pytest.mark.parametrize("mode", ["stay", "fork"])
def test_the_server_ends_when_its_parent_is_killed(mode: str) -> None:
    with parent(mode) as process:
        child, forked = map(int, read_line(process).split())
        assert psutil.pid_exists(child)
        process.kill()
        process.wait()
        try:
            wait_for_end(child)
        finally:
            if forked:
                os.kill(forked, signal.SIGKILL)


@real
def test_the_server_ends_when_its_parent_forgets_it() -> None:
    with parent("leave") as process:
        child = int(read_line(process).split()[0])
        assert process.wait(PATIENCE) == 0
        wait_for_end(child)


@real
@posix
def test_only_the_parent_decides_what_ctrl_c_means() -> None:
    with parent("stay") as process:
        child = int(read_line(process).split()[0])
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert read_line(process).strip() == "200"  # asked after the signal
        assert process.wait(PATIENCE) == 0
        wait_for_end(child)


@real
def test_a_server_that_dies_says_why() -> None:
    server = start(context_length=512)
    try:
        assert server.failure is None
        server._process.kill()
        server._process.wait()
        assert server.failure is not None
        assert "signal 9" in server.failure
    finally:
        asyncio.run(server.close())


# What the server itself does not do on demand is done by stand-ins for its program.

CHATTY = """
import json, sys
sys.stdin.readline()
for n in range(200_000): print("0.00.1 I a line of which there are many", file=sys.stderr)
print(json.dumps({"url": "http://127.0.0.1:1", "context": 7}), flush=True)
for n in range(200_000): print("0.00.1 I a line of which there are many", file=sys.stderr)
sys.exit("the last words")
"""
DYING = "import sys; sys.stderr.write('0.1 I all well\\n0.2 E no such tensor\\n0.3 E giving up\\n'); sys.exit(3)"
SILENT = "import os, sys, time; open(sys.argv[0] + '.pid', 'w').write(str(os.getpid())); time.sleep(600)"


def stand_in(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> Path:
    path = folder / "program.py"
    path.write_text(program)
    monkeypatch.setattr(launch, "_PROGRAM", path)
    return path


def test_a_chatty_child_is_never_blocked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, CHATTY)

    async def main() -> str | None:
        server = await EmbeddedServer.start(WEIGHTS, load_timeout=PATIENCE)
        assert (server.url, server.context_length) == ("http://127.0.0.1:1/v1", 7)
        server._process.wait(PATIENCE)  # the event loop stands still meanwhile
        said = server.failure
        await server.close()
        return said

    assert "the last words" in str(asyncio.run(main()))


def test_a_dying_child_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand_in(monkeypatch, tmp_path, DYING)
    with pytest.raises(InputError, match=r"no such tensor \| giving up; ") as caught:
        start()
    assert "all well" not in str(caught.value)


def test_a_child_that_never_answers_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = stand_in(monkeypatch, tmp_path, SILENT)
    with pytest.raises(InputError, match="within 3 s"):
        start(load_timeout=3)
    wait_for_end(int(Path(f"{program}.pid").read_text()))


def test_cancelling_the_start_leaves_no_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = stand_in(monkeypatch, tmp_path, SILENT)
    ours = psutil.Process()
    before = set(ours.children())

    async def main() -> set[psutil.Process]:
        starting = asyncio.create_task(EmbeddedServer.start(WEIGHTS))
        await asyncio.to_thread(until, Path(f"{program}.pid").exists, "the child does not start")
        children = set(ours.children()) - before
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        return children

    (child,) = asyncio.run(main())
    wait_for_end(child.pid)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is known on Linux")
def test_threads_are_the_cores_we_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert available_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "150000 100000\n")
    assert available_cores() == 1
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "max 100000\n")
    assert available_cores() == 2
