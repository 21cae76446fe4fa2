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
from tests.fakes.loopback import Loopback, window_key
from tests.support.serving import Answer, Served, command, served
from tests.support.waiting import PATIENCE, STUCK_SECONDS, settled, until

pytestmark = pytest.mark.integration

STUCK: dict[str, Any] = {"first_token": STUCK_SECONDS}


def marked(client: int) -> list[str]:
    """Passages that carry the client's own mark; the best one stands last."""
    return [f"mark:C{client:03d}-D{i}-G{i} of client {client}" for i in range(4)]


def is_asked(server: Loopback, calls: int = 1) -> Callable[[], bool]:
    return lambda: len(server.calls) >= calls


def was_cancelled(server: Loopback) -> Callable[[], bool]:
    return lambda: bool(server.calls) and all(call.cancelled for call in server.calls)


def waits_for_its_turn(server: Served) -> Callable[[], bool]:
    return lambda: server.gauge("requests_waiting") == 1


def refuses_connections(server: Served) -> bool:
    try:
        socket.create_connection(server.address, timeout=PATIENCE).close()
    except ConnectionError:
        return True
    return False


def posted(server: Served, **fields: object) -> socket.socket:
    """A connection on which a request has been sent, to be left or read."""
    body = json.dumps({"query": "q", "documents": marked(0), **fields}).encode()
    sock = server.connect()
    head = (
        f"POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    )
    sock.sendall(f"{head}\r\n\r\n".encode() + body)
    return sock


# --- many at once ---


def test_two_hundred_clients_each_get_their_own(loopback: StartLoopback) -> None:
    model = loopback(child=True)
    limits = Limits(max_concurrent=16, queue=400, per_client=200)
    ready = threading.Barrier(200)

    def one(client: int) -> Answer:
        ready.wait(PATIENCE)
        return server.rerank(marked(client), query=f"client {client}", return_documents=True)

    with served(Reranker(server=model.url), limits) as server, ThreadPoolExecutor(200) as pool:
        answers = list(pool.map(one, range(200)))
        assert server.service is not None
        assert (server.service.queue.running, server.service.queue.waiting) == (0, 0)
    for client, answer in enumerate(answers):
        assert answer.status == 200, answer.raw
        texts = [result["document"]["text"] for result in answer.json["results"]]
        assert texts == marked(client)[::-1]
    assert len(model.calls) == 200


def test_beyond_the_queue_clients_are_told_when_to_come_again(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.5)
    limits = Limits(max_concurrent=1, queue=4, per_client=4)
    with served(Reranker(server=model.url, concurrency=1), limits) as server, ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(lambda client: server.rerank(marked(client)), range(12)))
    done = [answer for answer in answers if answer.status == 200]
    refused = [answer for answer in answers if answer.status == 429]
    assert len(done) + len(refused) == 12
    assert len(done) >= 3, "one at work, and half of the queue for a client"
    assert refused
    for answer in refused:
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert answer.json["message"] == answer.json["detail"]


def test_a_greedy_client_does_not_keep_others_out(loopback: StartLoopback) -> None:
    model = loopback(first_token=1.0)  # all ten must arrive before the first one is done
    limits = Limits(max_concurrent=2, queue=8, per_client=1)
    access = AccessConfig(keys=("greedy-key", "modest-key"))
    with served(Reranker(server=model.url), limits, access) as server, ThreadPoolExecutor(12) as pool:

        def one(client: int, key: str) -> Answer:
            return server.post({"query": "q", "documents": marked(client)}, Authorization=f"Bearer {key}")

        greedy = [pool.submit(one, client, "greedy-key") for client in range(10)]
        until(is_asked(model), "nothing is asked")
        assert one(50, "modest-key").status == 200
        modest = [call.window for call in model.calls].index(window_key([f"C050-D{i}-G{i}" for i in range(4)]))
        assert modest < 4, "it did not wait until the greedy one's five requests had been taken"
        statuses = sorted(future.result().status for future in greedy)
    assert statuses == [200] * 5 + [429] * 5, "one at work, four of eight places to wait in"


# --- turns, without a network ---


def test_turns_go_by_arrival_but_nobody_has_more_than_a_share() -> None:
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


def test_who_leaves_the_queue_leaves_no_gap() -> None:
    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=1, queue=4, per_client=4))
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(admission.admit("a"))
            waiting = [asyncio.create_task(_hold(admission, "b")) for _ in range(2)]
            await asyncio.sleep(0)
            waiting[0].cancel()
            await asyncio.sleep(0)
            assert admission.waiting == 1
        waiting[1].cancel()  # in the moment in which its turn came
        await asyncio.gather(*waiting, return_exceptions=True)
        assert (admission.running, admission.waiting) == (0, 0)
        await asyncio.wait_for(admission.wait_until_idle(), PATIENCE)
        await _hold(admission, "c")

    asyncio.run(main())


def test_who_leaves_the_queue_as_a_turn_ends_harms_nobody() -> None:
    """Cancelled, its task has not run yet when the place that it waited for becomes free."""

    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=1, queue=4, per_client=4))
        async with admission.admit("a"):
            leaving, staying = (asyncio.create_task(_hold(admission, "b")) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
        await asyncio.wait_for(staying, PATIENCE)
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (admission.running, admission.waiting) == (0, 0)
        await asyncio.wait_for(admission.wait_until_idle(), PATIENCE)

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(5))
def test_however_clients_come_and_leave_no_place_is_lost(seed: int) -> None:
    """Some moves come in the same step of the loop as the one before, some in the next."""
    random = Random(seed)

    async def work(admission: RequestQueue, client: str, over: asyncio.Event) -> None:
        async with admission.admit(client):
            await over.wait()

    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=2, queue=6, per_client=1))
        came: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        for _ in range(500):
            move, there = random.choice(("come", "leave", "finish")), [pair for pair in came if not pair[0].done()]
            if move == "come" or not there:
                over = asyncio.Event()
                came.append((asyncio.create_task(work(admission, random.choice("abc"), over)), over))
            elif move == "leave":
                random.choice(there)[0].cancel()
            else:
                random.choice(there)[1].set()
            if random.random() < 0.5:
                await asyncio.sleep(0)
            assert admission.running <= 2
        for _, over in came:
            over.set()
        await asyncio.wait_for(asyncio.gather(*(task for task, _ in came), return_exceptions=True), PATIENCE)
        assert all(task.cancelled() or isinstance(task.exception(), ApiError | None) for task, _ in came)
        assert (admission.running, admission.waiting) == (0, 0)
        await asyncio.wait_for(admission.wait_until_idle(), PATIENCE)

    asyncio.run(main())


def test_closing_turns_away_who_waits_and_who_comes() -> None:
    async def main() -> None:
        admission = RequestQueue(Limits(max_concurrent=1, queue=4, per_client=4))
        finish = asyncio.Event()
        at_work = asyncio.create_task(_hold(admission, "a", finish))
        waiting = asyncio.create_task(_hold(admission, "b"))
        await settled()
        admission.close()
        for late in (waiting, asyncio.create_task(_hold(admission, "c"))):
            with pytest.raises(ApiError) as refused:
                await late
            assert refused.value.status == 503
        assert not at_work.done()
        finish.set()
        await admission.wait_until_idle()
        await at_work

    asyncio.run(main())


async def _hold(admission: RequestQueue, client: str, finish: asyncio.Event | None = None) -> None:
    async with admission.admit(client):
        await (asyncio.sleep(0) if finish is None else finish.wait())


def test_stopping_ends_though_a_place_is_never_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "_LEAVING", 0.05)

    async def main() -> None:
        of_nobody = service.RerankService(None, Limits(grace_seconds=0.05))
        async with of_nobody.queue.admit("a"):
            await asyncio.wait_for(of_nobody.stop(), PATIENCE)

    asyncio.run(main())


# --- clients that leave ---


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_the_models_work(loopback: StartLoopback, stream: bool) -> None:
    model = loopback(**STUCK)
    with served(Reranker(server=model.url)) as server:
        with posted(server, stream=stream):
            until(is_asked(model), "nothing is asked")
        until(was_cancelled(model), "the model works for nobody")
        assert server.service is not None
        until(lambda: server.service.queue.running == 0, "its place is not given back")  # type: ignore[union-attr]
        model.change(first_token=0.001)
        assert server.rerank(marked(1)).status == 200
        assert server.errors == []


def test_a_client_that_leaves_in_mid_stream_ends_the_models_work(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.01, per_token=1.0, flush=0.05)  # some 400 s of reasoning
    with served(Reranker(server=model.url)) as server:
        with posted(server, stream=True) as sock:
            found = b""
            while b"event: trace" not in found:
                found += sock.recv(4096)
        until(was_cancelled(model), "the model works for nobody")
        assert server.errors == []


def test_of_two_who_ask_the_same_one_may_leave(loopback: StartLoopback) -> None:
    model = loopback(first_token=0.01, per_token=0.01)  # some seconds of reasoning
    body = json.dumps({"query": "q", "documents": marked(0), "stream": True})
    with served(Reranker(server=model.url)) as server:
        with posted(server, stream=True):
            until(is_asked(model), "nothing is asked")
            other = http.client.HTTPConnection(*server.address, timeout=PATIENCE)
            other.request("POST", "/v2/rerank", body, {"Content-Type": "application/json"})
            response, received = other.getresponse(), b""
            while b"event: trace" not in received:  # then the other takes part
                received += response.read1()
        with closing(other):
            events = Answer(response.status, {}, received + response.read()).events
        assert [result["index"] for result in events[-1][1]["results"]] == [3, 2, 1, 0]
    assert [call.cancelled for call in model.calls] == [False]


@pytest.mark.parametrize("stream", [False, True])
def test_a_reader_that_does_not_read_is_given_up(loopback: StartLoopback, stream: bool) -> None:
    model, size = loopback(), 16_000_000  # more than the system's buffers hold
    limits = Limits(characters=2 * size, body=2 * size, head_seconds=0.5, stall_seconds=0.5)
    with served(Reranker(server=model.url), limits) as server:
        documents = ["mark:a-G1 " + "y" * size, "mark:z-G9 last"]
        with posted(server, documents=documents, stream=stream, return_documents=True) as sock:
            until(lambda: b'path="/v2/rerank",status="200"} 1.0' in server.get("/metrics").raw, "no answer")
            until(lambda: not server.is_connected(sock), "the connection is kept for a reader that does not read")
            came = 0
            with contextlib.suppress(ConnectionError):
                while piece := sock.recv(65_536):
                    came += len(piece)
            assert came < size, "all of it was kept for who did not read"


# --- the end ---


@pytest.mark.parametrize("name", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_finishes_what_is_under_way(loopback: StartLoopback, name: signal.Signals) -> None:
    model = loopback(first_token=3.0)
    options = ("--server", model.url, "--concurrency", "1", "--shutdown-timeout", str(PATIENCE))
    with command(*options) as running, ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.served.rerank, marked(1))
        until(is_asked(model), "nothing is asked")
        second = pool.submit(running.served.rerank, marked(2))  # waits for its turn
        until(waits_for_its_turn(running.served), "the second one does not wait")
        running.signal(name)
        assert first.result().indices == [3, 2, 1, 0]
        assert second.result().status == 503
        code, _, err = running.end()
    assert (code, err.strip()) == (0, "rank-k serve: stopped")
    assert len(model.calls) == 1


def test_while_it_stops_it_takes_no_connection_and_none_is_kept_open(loopback: StartLoopback) -> None:
    model = loopback(first_token=5.0)
    with command("--server", model.url) as running, ThreadPoolExecutor(1) as pool:
        kept = http.client.HTTPConnection(*running.served.address, timeout=PATIENCE)
        with closing(kept):
            kept.request("GET", "/health")
            assert kept.getresponse().read() == b'{"status":"ok"}'
            first = pool.submit(running.served.rerank, marked(1))
            until(is_asked(model), "nothing is asked")
            running.signal(signal.SIGTERM)
            assert kept.sock.recv(1) == b"", "it is closed"
            with pytest.raises(ConnectionRefusedError):
                running.served.get("/health")
            assert not first.done()
        assert first.result().status == 200


def test_told_twice_it_leaves_at_once_and_says_so(loopback: StartLoopback) -> None:
    model = loopback(**STUCK)
    with (
        command("--server", model.url, "--shutdown-timeout", str(STUCK_SECONDS)) as running,
        ThreadPoolExecutor(2) as pool,
    ):
        answers = [pool.submit(running.served.rerank, marked(1), stream=stream) for stream in (False, True)]
        until(is_asked(model), "nothing is asked")
        with running.served.connect() as dripping:
            dripping.sendall(
                b"POST /v2/rerank HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                b"Content-Length: 9\r\n\r\n{"
            )
            until(lambda: running.served.gauge("requests_running") == 2, "the second one is not at work")
            running.signal(signal.SIGINT)
            until(lambda: refuses_connections(running.served), "it does not begin to stop")
            assert running.process.poll() is None, "once, it has patience"
            running.signal(signal.SIGINT)
            code, _, err = running.end()
        assert (code, err.strip()) == (0, "rank-k serve: stopped")
        assert (answers[0].result().status, answers[0].result().json["message"]) == (503, "the server is stopping")
        assert answers[1].result().events[-1][1]["message"] == "the server is stopping"


def test_what_does_not_finish_in_time_is_cut_short_and_the_rest_is_journaled(
    loopback: StartLoopback, tmp_path: Path
) -> None:
    model, journal = loopback(), tmp_path / "served.sqlite"
    options = ("--server", model.url, "--journal", str(journal), "--shutdown-timeout", "0.5")
    with command(*options) as running, ThreadPoolExecutor(1) as pool:
        assert running.served.rerank(marked(1)).status == 200
        model.change(**STUCK)
        stuck = pool.submit(running.served.rerank, marked(2))
        until(is_asked(model, 2), "nothing is asked")
        running.signal(signal.SIGTERM)
        assert stuck.result().status == 503
        code, _, err = running.end()
    assert (code, err.strip()) == (0, "rank-k serve: stopped")
    until(lambda: model.calls[-1].cancelled, "the model works for nobody")
    with closing(Journal(journal, read_only=True)) as kept:
        assert sum(calls for _, _, calls, _, _ in kept.totals()) == 1
    model.change(first_token=0.001)
    with command(*options) as again:
        assert again.served.rerank(marked(1)).indices == [3, 2, 1, 0]
    assert len(model.calls) == 2, "what the journal knows is not asked again"
