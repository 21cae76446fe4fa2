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
from rank_k.models.embedded import EmbeddedModel
from rank_k.models.launch import EmbeddedServer, available_cores, remedy_for
from rank_k.models.weights import NAMED, Weights
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.embedded

_PUBLISHED = NAMED["smollm2-135m-instruct"]
WEIGHTS = Weights(
    _PUBLISHED.name, _PUBLISHED.path, _PUBLISHED.sha256, _PUBLISHED.context_length
)  # in the user's own cache, found before it is hidden
needs_weights = pytest.mark.skipif(not WEIGHTS.path.exists(), reason="needs the weights that `rank-k fetch` gets")
needs_posix = pytest.mark.skipif(os.name != "posix", reason="signals and process groups of POSIX")


def start_server(weights: Weights = WEIGHTS, **options: Any) -> EmbeddedServer:
    return asyncio.run(EmbeddedServer.start(weights, **options))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedServer]:
    running = start_server(context_length=512, concurrency=2)
    yield running
    asyncio.run(running.close())


def send_request(server: EmbeddedServer, path: str, body: Any = None, *, key: str | None = "own") -> tuple[int, Any]:
    headers = {"Content-Type": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {server.api_key if key == 'own' else key}"
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("GET" if body is None else "POST", path, body and json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())


CHAT_PATH = "/v1/chat/completions"


def chat_body(text: str = "Name an animal.", **options: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], "max_tokens": 1, "temperature": 0, **options}


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # dead; whoever adopted it has not looked yet
    except psutil.NoSuchProcess:
        return True


def wait_until_ended(pid: int) -> None:
    wait_until(lambda: has_ended(pid), f"process {pid} is still running")


def cpu_seconds_until_idle(pid: int) -> float:
    """Wait until the process uses no processor; return the seconds of it that it has used since it began."""
    process = psutil.Process(pid)

    def is_idle() -> bool:
        before = process.cpu_times().user
        time.sleep(0.5)
        return process.cpu_times().user == before

    wait_until(is_idle, f"process {pid} is never idle")
    return float(process.cpu_times().user)


@needs_weights
def test_server_requires_the_key(server: EmbeddedServer) -> None:
    status, models = send_request(server, "/v1/models")
    assert (status, models["data"][0]["id"], models["data"][0]["owned_by"]) == (200, WEIGHTS.name, "llamacpp")
    status, answer = send_request(server, CHAT_PATH, chat_body())
    assert status == 200
    assert answer["choices"][0]["message"]["content"]
    for key in (None, "guessed", server.api_key[:-1]):
        for path, body in (
            (CHAT_PATH, chat_body()),
            ("/v1/models", None),
            ("/tokenize", {"content": "x"}),
            ("/props", None),
        ):
            assert send_request(server, path, body, key=key)[0] == 401


@needs_weights
def test_server_disables_slots_metrics_and_pages(server: EmbeddedServer) -> None:
    assert [send_request(server, path)[0] for path in ("/slots", "/metrics", "/", "/index.html")] == [
        501,
        501,
        404,
        404,
    ]
    assert send_request(server, "/props", {})[0] == 501


@needs_weights
def test_server_allows_no_cross_origin_reads(server: EmbeddedServer) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=PATIENCE)
    with contextlib.closing(connection):
        connection.request("OPTIONS", CHAT_PATH, headers={"Origin": "http://page.example"})
        response = connection.getresponse()
        response.read()
    assert response.getheader("Access-Control-Allow-Origin") in (None, "")


@needs_weights
def test_server_listens_on_loopback_and_hides_the_key(server: EmbeddedServer) -> None:
    process = psutil.Process(server._process.pid)
    listening = [c.laddr.ip for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening == ["127.0.0.1"]
    assert server.api_key not in " ".join(process.cmdline())
    assert server.api_key not in " ".join(process.environ().values())
    assert len(server.api_key) >= 32


@needs_weights
def test_context_length_applies_per_slot(server: EmbeddedServer) -> None:
    assert server.context_length == 512
    status, refused = send_request(server, CHAT_PATH, chat_body("word " * 600))
    assert (status, refused["error"]["n_ctx"]) == (400, 512)
    # 256 would be each slot's part, were the 512 shared between the two
    status, answer = send_request(server, CHAT_PATH, chat_body("word " * 400))
    assert status == 200
    assert 400 < answer["usage"]["prompt_tokens"] <= 512


@needs_weights
def test_server_caches_prompt_prefixes(server: EmbeddedServer) -> None:
    text = "A long and rather peculiar introduction to a question about herons. " * 8
    first_usage = send_request(server, CHAT_PATH, chat_body(text + "One."))[1]["usage"]
    second_usage = send_request(server, CHAT_PATH, chat_body(text + "Two."))[1]["usage"]
    assert second_usage["prompt_tokens_details"]["cached_tokens"] > first_usage["prompt_tokens"] * 0.8


@needs_weights
def test_server_stops_work_when_the_client_disconnects(server: EmbeddedServer) -> None:
    """Nobody reads more than the first word of two answers: they cost less than they would in full.

    What they would cost, four times as much, is measured by an answer of half the length that is read.
    """
    long_request = chat_body(max_tokens=200, ignore_eos=True)
    endless_request = json.dumps({**long_request, "max_tokens": 400, "stream": True}).encode()
    address = urlsplit(server.url)
    cpu_before = cpu_seconds_until_idle(server._process.pid)
    assert send_request(server, CHAT_PATH, long_request)[0] == 200
    cpu_after_full_response = cpu_seconds_until_idle(server._process.pid)
    for _ in range(2):  # both slots
        with socket.create_connection((address.hostname, address.port or 0)) as client:
            client.sendall(
                f"POST {CHAT_PATH} HTTP/1.1\r\nHost: {address.netloc}\r\nAuthorization: Bearer {server.api_key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(endless_request)}\r\n\r\n".encode()
                + endless_request
            )
            received = b""
            while b'"content":"' not in received:
                received += client.recv(65536)
    assert send_request(server, CHAT_PATH, chat_body())[0] == 200
    cpu_after_disconnects = cpu_seconds_until_idle(server._process.pid)
    assert cpu_after_disconnects - cpu_after_full_response < 2.5 * (cpu_after_full_response - cpu_before), (
        "nothing goes on in the background"
    )


@needs_weights
def test_start_caps_the_context_length_and_runs_several_servers() -> None:
    async def main() -> None:
        first_server, second_server = await asyncio.gather(
            EmbeddedServer.start(WEIGHTS, context_length=20_000, threads=1),
            EmbeddedServer.start(WEIGHTS, context_length=300),
        )
        try:
            assert first_server.context_length == WEIGHTS.context_length
            assert second_server.context_length >= 300
            assert first_server.url != second_server.url
            assert send_request(first_server, "/v1/models", key=second_server.api_key)[0] == 401
            assert send_request(second_server, CHAT_PATH, chat_body())[0] == 200
            await first_server.close()
            await first_server.close()
            assert first_server.failure is None
            assert send_request(second_server, CHAT_PATH, chat_body())[0] == 200
        finally:
            await first_server.close()
            await second_server.close()

    asyncio.run(main())


def write_adapter(path: Path, width: int) -> None:
    """A LoRA adapter of rank 1 on one projection, as GGUF, version 3."""

    def encode_string(value: str) -> bytes:
        return struct.pack("<Q", len(value)) + value.encode()

    metadata = {"general.type": "adapter", "general.architecture": "llama", "adapter.type": "lora"}
    tensors = {"blk.0.attn_v.weight.lora_a": (width, 1), "blk.0.attn_v.weight.lora_b": (1, 192)}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata) + 1)
    for key, value in metadata.items():
        header += encode_string(key) + struct.pack("<I", 8) + encode_string(value)
    header += encode_string("adapter.lora.alpha") + struct.pack("<If", 6, 1.0)
    data = b""
    for name, shape in tensors.items():
        header += encode_string(name) + struct.pack("<IQQIQ", 2, *shape, 0, len(data))
        data += struct.pack("<f", 0.3) * (shape[0] * shape[1])
        data += b"\0" * (-len(data) % 32)
    path.write_bytes(header + b"\0" * (-len(header) % 32) + data)


@needs_weights
def test_start_with_an_adapter_changes_answers_and_identity(tmp_path: Path, server: EmbeddedServer) -> None:
    body = chat_body(logprobs=True, top_logprobs=1)
    base_logprob = send_request(server, CHAT_PATH, body)[1]["choices"][0]["logprobs"]["content"][0]["logprob"]
    adapter = tmp_path / "adapter.gguf"
    write_adapter(adapter, 576)
    adapted = start_server(context_length=512, adapter=adapter)
    try:
        adapted_logprob = send_request(adapted, CHAT_PATH, body)[1]["choices"][0]["logprobs"]["content"][0]["logprob"]
    finally:
        asyncio.run(adapted.close())
    assert abs(adapted_logprob - base_logprob) > 0.01
    assert EmbeddedModel(WEIGHTS).identity == WEIGHTS.sha256
    weights_sha256, _, adapter_sha256 = EmbeddedModel(WEIGHTS, adapter=adapter).identity.partition("+")
    assert weights_sha256 == WEIGHTS.sha256
    assert len(adapter_sha256) == 64

    write_adapter(adapter, 577)
    with pytest.raises(InputError, match="could not start with") as error_info:
        start_server(adapter=adapter)
    assert "adapter.gguf" in str(error_info.value)
    adapter.write_bytes(b"junk")
    with pytest.raises(FormatError, match="not a GGUF file"):
        EmbeddedModel(WEIGHTS, adapter=adapter)


@needs_weights
def test_start_quotes_the_server_error_for_broken_weights(tmp_path: Path) -> None:
    truncated = tmp_path / "cut.gguf"
    with WEIGHTS.path.open("rb") as file:
        truncated.write_bytes(file.read(20_000_000))
    with pytest.raises(InputError, match=r"cut\.gguf.*corrupted or incomplete.*; ") as error_info:
        start_server(Weights("cut", truncated, "0" * 64))
    assert "\n" not in str(error_info.value)


def test_start_without_xllamacpp_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtra, match=r"rank-k\[embedded\]"):
        start_server()


PARENT = """
import asyncio, os, signal, sys, time
from pathlib import Path
from rank_k.models.launch import EmbeddedServer
from rank_k.models.weights import Weights
from tests.models.test_launch import CHAT_PATH, chat_body, send_request
server = asyncio.run(EmbeddedServer.start(Weights("weights", Path(sys.argv[2]), "0" * 64), context_length=512))
def interrupted(*_):
    print(send_request(server, CHAT_PATH, chat_body())[0], flush=True)
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
def start_parent(mode: str) -> Iterator[subprocess.Popen[str]]:
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


@needs_weights
@needs_posix
@pytest.mark.parametrize("mode", ["stay", "fork"])
def test_server_ends_when_its_parent_is_killed(mode: str) -> None:
    with start_parent(mode) as process:
        child, forked = map(int, read_line(process).split())
        assert psutil.pid_exists(child)
        process.kill()
        process.wait()
        try:
            wait_until_ended(child)
        finally:
            if forked:
                os.kill(forked, signal.SIGKILL)


@needs_weights
def test_server_ends_when_its_parent_exits_without_close() -> None:
    with start_parent("leave") as process:
        child = int(read_line(process).split()[0])
        assert process.wait(PATIENCE) == 0
        wait_until_ended(child)


@needs_weights
@needs_posix
def test_server_ignores_ctrl_c() -> None:
    with start_parent("stay") as process:
        child = int(read_line(process).split()[0])
        os.killpg(process.pid, signal.SIGINT)  # what a terminal does
        assert read_line(process).strip() == "200"  # asked after the signal
        assert process.wait(PATIENCE) == 0
        wait_until_ended(child)


@needs_weights
def test_failure_reports_the_signal() -> None:
    server = start_server(context_length=512)
    try:
        assert server.failure is None
        server._process.kill()
        server._process.wait()
        assert server.failure is not None
        assert "signal 9" in server.failure
    finally:
        asyncio.run(server.close())


# What the server itself does not do on demand is done by stand-ins for its program.

CHATTY_PROGRAM = """
import json, sys
sys.stdin.readline()
for n in range(200_000): print("0.00.1 I a line of which there are many", file=sys.stderr)
print(json.dumps({"url": "http://127.0.0.1:1", "context_length": 7}), flush=True)
for n in range(200_000): print("0.00.1 I a line of which there are many", file=sys.stderr)
sys.exit("the last words")
"""
DYING_PROGRAM = (
    "import sys; sys.stderr.write('0.1 I all well\\n0.2 E no such tensor\\n0.3 E giving up\\n'); sys.exit(3)"
)
SILENT_PROGRAM = "import os, sys, time; open(sys.argv[0] + '.pid', 'w').write(str(os.getpid())); time.sleep(600)"


def replace_program(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> Path:
    path = folder / "program.py"
    path.write_text(program)
    monkeypatch.setattr(launch, "_PROGRAM", path)
    return path


def test_start_drains_stderr_of_a_chatty_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_program(monkeypatch, tmp_path, CHATTY_PROGRAM)

    async def main() -> str | None:
        server = await EmbeddedServer.start(WEIGHTS, load_timeout=PATIENCE)
        assert (server.url, server.context_length) == ("http://127.0.0.1:1/v1", 7)
        server._process.wait(PATIENCE)  # the event loop stands still meanwhile
        failure = server.failure
        await server.close()
        return failure

    assert "the last words" in str(asyncio.run(main()))


def test_start_quotes_a_dying_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    replace_program(monkeypatch, tmp_path, DYING_PROGRAM)
    with pytest.raises(InputError, match=r"no such tensor \| giving up; ") as error_info:
        start_server()
    assert "all well" not in str(error_info.value)


def test_start_ends_a_child_that_never_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = replace_program(monkeypatch, tmp_path, SILENT_PROGRAM)
    with pytest.raises(InputError, match="within 3 s"):
        start_server(load_timeout=3)
    wait_until_ended(int(Path(f"{program}.pid").read_text()))


def test_start_cancellation_leaves_no_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = replace_program(monkeypatch, tmp_path, SILENT_PROGRAM)
    parent_process = psutil.Process()
    earlier_children = set(parent_process.children())

    async def main() -> set[psutil.Process]:
        start_task = asyncio.create_task(EmbeddedServer.start(WEIGHTS))
        await asyncio.to_thread(wait_until, Path(f"{program}.pid").exists, "the child does not start")
        children = set(parent_process.children()) - earlier_children
        start_task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start_task
        return children

    (child,) = asyncio.run(main())
    wait_until_ended(child.pid)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="affinity is known on Linux")
def test_available_cores_respects_affinity_and_cgroup_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {3})
    assert available_cores() == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "150000 100000\n")
    assert available_cores() == 1
    monkeypatch.setattr(Path, "read_text", lambda path, encoding: "max 100000\n")
    assert available_cores() == 2


def test_remedy_for_a_missing_openmp_runtime_names_the_package() -> None:
    """A minimal Debian has no libgomp."""
    message = "ImportError: libgomp.so.1: cannot open shared object file: No such file or directory"
    assert "apt-get install libgomp1" in remedy_for(message)
    assert "libgomp" not in remedy_for("exit code 1")
