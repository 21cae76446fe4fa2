"""Many at once: turns, refusals, clients that leave, and a stop that loses nothing."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, closing
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rank_k import Journal, Reranker
from rank_k.server import service
from rank_k.server.api_errors import ApiError
from rank_k.server.config import AccessConfig, Limits
from rank_k.server.queue import RequestQueue
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import window_key
from tests.fakes.model_server.running import FakeModelServer
from tests.support.serving import Answer, ServerClient, run_server, start_server
from tests.support.waiting import PATIENCE, STUCK_SECONDS, let_tasks_run, wait_until

pytestmark = pytest.mark.integration

STUCK: dict[str, Any] = {"first_token": STUCK_SECONDS}


def marked_passages(client: int) -> list[str]:
    """Passages that carry the client's own mark; the best one stands last."""
    return [f"mark:C{client:03d}-D{i}-G{i} of client {client}" for i in range(4)]


def has_calls(server: FakeModelServer, calls: int = 1) -> Callable[[], bool]:
    return lambda: len(server.calls) >= calls


def was_cancelled(server: FakeModelServer) -> Callable[[], bool]:
    return lambda: bool(server.calls) and all(call.cancelled for call in server.calls)


def has_waiting_request(server: ServerClient) -> Callable[[], bool]:
    return lambda: server.gauge("requests_waiting") == 1


def refuses_connections(server: ServerClient) -> bool:
    try:
        socket.create_connection(server.address, timeout=PATIENCE).close()
    except ConnectionError:
        return True
    return False


def open_request(server: ServerClient, **fields: object) -> socket.socket:
    """A connection on which a request has been sent, to be left or read."""
    body = json.dumps({"query": "q", "documents": marked_passages(0), **fields}).encode()
    sock = server.connect()
    head = (
        f"POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    sock.sendall(f"{head}\r\n\r\n".encode() + body)
    return sock


# --- many at once ---


def test_server_answers_200_concurrent_clients(loopback: StartLoopback) -> None:
    model = loopback(child=True)
    limits = Limits(max_concurrent=16, queue=400, per_client=200)
    ready = threading.Barrier(200)

    def rerank_as_client(client: int) -> Answer:
        ready.wait(PATIENCE)
        return server.rerank(marked_passages(client), query=f"client {client}", return_documents=True)

    with run_server(Reranker(server=model.url), limits) as server, ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(rerank_as_client, range(200)))
        assert server.service is not None
        assert (server.service.queue.running, server.service.queue.waiting) == (0, 0)
    for client, answer in enumerate(answers):
        assert answer.status == 200, answer.raw
        texts = [result["document"]["text"] for result in answer.json["results"]]
        assert texts == marked_passages(client)[::-1]
    assert len(model.calls) == 200


def test_full_queue_returns_429_with_retry_after(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.5)
    limits = Limits(max_concurrent=1, queue=4, per_client=4)
    with run_server(Reranker(server=model.url, concurrency=1), limits) as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda client: server.rerank(marked_passages(client)), range(12)))
    done = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(done) + len(refused) == 12
    assert len(done) >= 3, "one at work, and half of the queue for a client"
    assert refused
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert answer.json["message"] == answer.json["detail"]


def test_queue_limits_requests_per_client(loopback: StartLoopback) -> None:
    model = loopback(first_token=1.0)  # all ten must arrive before the first one is done
    limits = Limits(max_concurrent=2, queue=8, per_client=1)
    access = AccessConfig(keys=("greedy-key", "modest-key"))
    with run_server(Reranker(server=model.url), limits, access) as server, ThreadPoolExecutor(12) as pool:

        def rerank_as_client(client: int, key: str) -> Answer:
            return server.post({"query": "q", "documents": marked_passages(client)}, Authorization=f"Bearer {key}")

        greedy = [pool.submit(rerank_as_client, client, "greedy-key") for client in range(10)]
        wait_until(has_calls(model), "nothing is asked")
        assert rerank_as_client(50, "modest-key").status == 200
        modest = [call.window for call in model.calls].index(window_key([f"C050-D{i}-G{i}" for i in range(4)]))
        assert modest < 4, "it did not wait until the greedy one's five requests had been taken"
        statuses = sorted(future.result().status for future in greedy)
    assert statuses == [200] * 5 + [429] * 5, "one at work, four of eight places to wait in"


# --- turns, without a network ---


def test_request_queue_is_fifo_within_client_limits() -> None:
    async def main() -> list[str]:
        admission = RequestQueue(Limits(max_concurrent=2, queue=10, per_client=1))
        order: list[str] = []

        async def work(name: str) -> None:
            async with admission.admit(name[0]):
                order.append(name)
                await asyncio.sleep(0.01)

        await asyncio.gather(*(work(name) for name in ("a1", "a2", "a3", "b1", "b2", "c1")))
        assert (admission.running, admission.waiting) == (0, 0)
        return order

    assert asyncio.run(main()) == ["a1", "b1", "a2", "b2", "a3", "c1"]


def test_request_queue_removes_cancelled_requests() -> None:
    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=1, queue=4, per_client=4))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.admit("a"))
            waiting = [asyncio.create_task(hold_place(admission, "b")) for _ in range(2)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
            assert admission.waiting == 1
        waiting[1].cancel()  # in the moment in which its turn came
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (admission.running, admission.waiting) == (0, 0)
        await asyncio.wait_for(admission.wait_until_idle(), PATIENCE)
        await hold_place(admission, "c")

    asyncio.run(main())


def test_request_queue_skips_requests_cancelled_on_release() -> None:
    """Cancelled, its task has not run yet when the place that it waited for becomes free."""

    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=1, queue=4, per_client=4))
        async with admission.admit("a"):
            leaving, staying = (asyncio.create_task(hold_place(admission, "b")) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
        await asyncio.wait_for(staying, PATIENCE)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (admission.running, admission.waiting) == (0, 0)
        await asyncio.wait_for(admission.wait_until_idle(), PATIENCE)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_request_queue_never_loses_capacity(seed: int) -> None:
    """Some moves come in the same step of the loop as the one before, some in the next."""
    random = Random(seed)

    async def work(admission: RequestQueue, client: str, finish: asyncio.Event) -> None:
        async with admission.admit(client):
            await finish.wait()

    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=2, queue=6, per_client=1))
        clients: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for _ in range(500):
            move, active = random.choice(("come", "leave", "finish")), [pair for pair in clients if not pair[0].done()]
            if move == "come" or not active:
                finish = asyncio.Event()
                clients.append((asyncio.create_task(work(admission, random.choice("abc"), finish)), finish))
            elif move == "leave":
                random.choice(active)[0].cancel()
            else:
                random.choice(active)[1].set()
            if random.random() < 0.5:
                await asyncio.sleep(0)
            assert admission.running <= 2
        for _, finish in clients:
            finish.set()
        await asyncio.wait_for(asyncio.gather(*(task for task, _ in clients), return_exceptions=True), PATIENCE)
        assert all(task.cancelled() or isinstance(task.exception(), ApiError | None) for task, _ in clients)
        assert (admission.running, admission.waiting) == (0, 0)
        await asyncio.wait_for(admission.wait_until_idle(), PATIENCE)

    asyncio.run(main())


def test_request_queue_close_rejects_waiting_and_new() -> None:
    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=1, queue=4, per_client=4))
        finish = asyncio.Event()
        at_work = asyncio.create_task(hold_place(admission, "a", finish))
        waiting = asyncio.create_task(hold_place(admission, "b"))
        await let_tasks_run()
        admission.close()
        for late in (waiting, asyncio.create_task(hold_place(admission, "c"))):
            with pytest.raises(ApiError) as refused:
                await late
            assert refused.value.status == 503
        assert not at_work.done()
        finish.set()
        await admission.wait_until_idle()
        await at_work

    asyncio.run(main())


async def hold_place(admission: RequestQueue, client: str, finish: asyncio.Event | None = None) -> None:
    async with admission.admit(client):
        await (asyncio.sleep(0) if finish is None else finish.wait())


def test_service_stop_ends_despite_stuck_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_CLEANUP_SECONDS", 0.05)

    async def main() -> None:
        rerank_service = service.RerankService(None, Limits(shutdown_timeout=0.05))
        async with rerank_service.queue.admit("a"):
            await asyncio.wait_for(rerank_service.stop(), PATIENCE)

    asyncio.run(main())


# --- clients that leave ---


@pytest.mark.parametrize("stream", [False, True])
def test_client_disconnect_cancels_model_call(loopback: StartLoopback, stream: bool) -> None:
    model = loopback(**STUCK)
    with run_server(Reranker(server=model.url)) as server:
        with open_request(server, stream=stream):
            wait_until(has_calls(model), "nothing is asked")
        wait_until(was_cancelled(model), "the model works for nobody")
        assert server.service is not None
        wait_until(lambda: server.service.queue.running == 0, "its place is not given back")  # type: ignore[union-attr]
        model.change(first_token=0.001)
        assert server.rerank(marked_passages(1)).status == 200
        assert server.errors == []


def test_client_disconnect_during_stream_cancels_model_call(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.01, per_token=1.0, flush=0.05)  # some 400 s of reasoning
    with run_server(Reranker(server=model.url)) as server:
        with open_request(server, stream=True) as sock:
            data = b""
            while b"event: trace" not in data:
                data += sock.recv(4096)
        wait_until(was_cancelled(model), "the model works for nobody")
        assert server.errors == []


def test_client_disconnect_keeps_shared_call_running(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.01, per_token=0.01)  # some seconds of reasoning
    body = json.dumps({"query": "q", "documents": marked_passages(0), "stream": True})
    with run_server(Reranker(server=model.url)) as server:
        with open_request(server, stream=True):
            wait_until(has_calls(model), "nothing is asked")
            second_client = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
            second_client.request("POST", "/v2/rerank", body, {"Content-Type": "application/json"})
            response, received = second_client.getresponse(), b""
            while b"event: trace" not in received:  # then the other takes part
                received += response.read1()
        with closing(second_client):
            events = Answer(response.status, {}, received + response.read()).events
        assert [result["index"] for result in events[-1][1]["results"]] == [3, 2, 1, 0]
    assert [call.cancelled for call in model.calls] == [False]


@pytest.mark.parametrize("stream", [False, True])
def test_server_closes_connections_that_do_not_read(loopback: StartLoopback, stream: bool) -> None:
    model, size = loopback(), 16_000_000  # more than the system's buffers hold
    limits = Limits(max_characters=2 * size, max_body=2 * size, head_seconds=0.5, stall_seconds=0.5)
    with run_server(Reranker(server=model.url), limits) as server:
        documents = ["mark:a-G1 " + "y" * size, "mark:z-G9 last"]
        with open_request(server, documents=documents, stream=stream, return_documents=True) as sock:
            wait_until(lambda: b'path="/v2/rerank",status="200"} 1.0' in server.get("/metrics").raw, "no answer")
            wait_until(lambda: not server.is_connected(sock), "the connection is kept for a reader that does not read")
            received_bytes = 0
            with contextlib.suppress(ConnectionError):
                while chunk := sock.recv(65_536):
                    received_bytes += len(chunk)
            assert received_bytes < size, "all of it was kept for who did not read"


# --- the end ---


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_serve_finishes_running_requests_on_signal(loopback: StartLoopback, name: signal.Signals) -> None:
    model = loopback(first_token=3.0)
    options = ("--server", model.url, "--concurrency", "1", "--shutdown-timeout", str(PATIENCE))
    with start_server(*options) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.served.rerank, marked_passages(1))
        wait_until(has_calls(model), "nothing is asked")
        second = pool.submit(running.served.rerank, marked_passages(2))  # waits for its turn
        wait_until(has_waiting_request(running.served), "the second one does not wait")
        running.signal(name)
        assert first.result().indices == [3, 2, 1, 0]
        assert second.result().status == 503
        code, _, err = running.end()
    assert (code, err.strip()) == (0, "rank-k serve: stopped")
    assert len(model.calls) == 1


def test_serve_closes_idle_connections_while_stopping(loopback: StartLoopback) -> None:
    model = loopback(first_token=5.0)
    with start_server("--server", model.url) as running, ThreadPoolExecutor(1) as pool:
        connection = http.client.HTTPConnection(*running.served.address, timeout=PATIENCE)
        with closing(connection):
            connection.request("GET", "/health")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            first = pool.submit(running.served.rerank, marked_passages(1))
            wait_until(has_calls(model), "nothing is asked")
            running.signal(signal.SIGTERM)
            assert connection.sock.recv(1) == b"", "it is closed"
            with pytest.raises(ConnectionRefusedError):
                running.served.get("/health")
            assert not first.done()
        assert first.result().status == 200


def test_serve_exits_at_once_on_second_signal(loopback: StartLoopback) -> None:
    model = loopback(**STUCK)
    with (
        start_server("--server", model.url, "--shutdown-timeout", str(STUCK_SECONDS)) as running,
        ThreadPoolExecutor(2) as pool,
    ):
        answers = [pool.submit(running.served.rerank, marked_passages(1), stream=stream) for stream in (False, True)]
        wait_until(has_calls(model), "nothing is asked")
        with running.served.connect() as dripping:
            dripping.sendall(
                b"POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 9\r\n\r\n{"
            )
            wait_until(lambda: running.served.gauge("requests_running") == 2, "the second one is not at work")
            running.signal(signal.SIGINT)
            wait_until(lambda: refuses_connections(running.served), "it does not begin to stop")
            assert running.process.poll() is None, "once, it has patience"
            running.signal(signal.SIGINT)
            code, _, err = running.end()
        assert (code, err.strip()) == (0, "rank-k serve: stopped")
        assert (answers[0].result().status, answers[0].result().json["message"]) == (503, "the server is stopping")
        assert answers[1].result().events[-1][1]["message"] == "the server is stopping"


def test_serve_cancels_requests_after_shutdown_timeout(loopback: StartLoopback, tmp_path: Path) -> None:
    model, journal = loopback(), tmp_path / "served.sqlite"
    options = ("--server", model.url, "--journal", str(journal), "--shutdown-timeout", "0.5")
    with start_server(*options) as running, ThreadPoolExecutor(1) as pool:
        assert running.served.rerank(marked_passages(1)).status == 200
        model.change(**STUCK)
        stuck = pool.submit(running.served.rerank, marked_passages(2))
        wait_until(has_calls(model, 2), "nothing is asked")
        running.signal(signal.SIGTERM)
        assert stuck.result().status == 503
        code, _, err = running.end()
    assert (code, err.strip()) == (0, "rank-k serve: stopped")
    wait_until(lambda: model.calls[-1].cancelled, "the model works for nobody")
    with closing(Journal(journal, read_only=True)) as journal_reader:
        assert sum(calls for _, _, calls, _, _ in journal_reader.usage_totals()) == 1
    model.change(first_token=0.001)
    with start_server(*options) as restarted:
        assert restarted.served.rerank(marked_passages(1)).indices == [3, 2, 1, 0]
    assert len(model.calls) == 2, "what the journal knows is not asked again"
