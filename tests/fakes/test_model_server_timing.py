"""The fake model server responds on time, and notices clients that disconnect."""

from __future__ import annotations

import asyncio
import time

import psutil
import pytest

from tests.conftest import StartLoopback
from tests.fakes.model_server.client import (
    DATASET,
    chat_body,
    marks_of,
    open_session,
    send_chat,
    send_one_chat,
    window_doc_ids,
)
from tests.fakes.model_server.marked_passages import response_latency, window_key
from tests.fakes.model_server.request_log import peak_concurrency
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration


async def measure_drift(step: float, seconds: float) -> float:
    """Return by how much waiting for `seconds` is late when it consists of waits of `step` seconds each."""
    start = time.monotonic()
    for _ in range(round(seconds / step)):
        await asyncio.sleep(step)
    return time.monotonic() - start - seconds


@pytest.mark.parametrize("stream", [True, False])
def test_model_server_latency_does_not_drift(loopback: StartLoopback, stream: bool) -> None:
    doc_ids = window_doc_ids()
    server = loopback(first_token=0.1, per_token=0.004, flush=0.003)
    expected = response_latency(marks_of(doc_ids), 0.1, 0.004)
    drifts = []
    for _ in range(3):
        response = send_one_chat(server, chat_body(doc_ids, stream=stream))
        if stream:
            assert response.chunk_count > 10  # it streamed: not all at the end
        drifts.append(asyncio.run(measure_drift(0.003, expected - 0.1)))
    delays = [(call.end or 0.0) - call.start - expected for call in server.calls]
    assert min(delays) >= -0.005
    assert min(delays) < min(drifts) / 2


def test_model_server_serves_64_streams_on_time(loopback: StartLoopback) -> None:
    """All are open at the same time, no answer takes as long as two, and each costs no more than one of a few does."""
    server = loopback(child=True, first_token=3.0, per_token=0.01, flush=0.02)
    windows = [window_doc_ids(query.query_id, start) for query in DATASET.queries[:22] for start in (0, 20, 40)][:64]
    child = psutil.Process(server.pid)

    async def send_all(number: int) -> None:
        async with open_session() as session:
            await asyncio.gather(*(send_chat(session, server.url, chat_body(window)) for window in windows[:number]))

    def cpu_seconds_of(number: int) -> float:
        server.forget()
        cpu_times_before = child.cpu_times()
        asyncio.run(send_all(number))
        cpu_times_after = child.cpu_times()
        return cpu_times_after.user + cpu_times_after.system - cpu_times_before.user - cpu_times_before.system

    cpu_of_16, cpu_of_64 = cpu_seconds_of(16), cpu_seconds_of(64)
    assert cpu_of_64 / 64 < 3 * cpu_of_16 / 16
    calls = server.calls
    assert {call.window: call.status for call in calls} == {window_key(marks_of(w)): 200 for w in windows}
    assert peak_concurrency((call.start, call.end or 0.0) for call in calls) == 64
    expected = {window_key(marks_of(w)): response_latency(marks_of(w), 3.0, 0.01) for w in windows}
    delays = sorted((call.end or 0.0) - call.start - expected[call.window] for call in calls)
    assert delays[0] >= -0.005
    assert delays[-1] < min(expected.values())


def test_model_server_slow_start_sends_a_comment(loopback: StartLoopback) -> None:
    server = loopback(slow_start=1.0, slow_seconds=0.2)
    response = send_one_chat(server, chat_body(window_doc_ids()))
    [call] = server.calls
    assert call.end is not None
    assert call.end - call.start >= 0.2
    assert response.skipped_lines == 1  # the comment
    assert response.finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_model_server_notices_disconnected_clients(loopback: StartLoopback, stream: bool) -> None:
    server = loopback(first_token=0.05, per_token=10.0)

    async def main() -> None:
        async with open_session() as session:
            request = asyncio.create_task(send_chat(session, server.url, chat_body(window_doc_ids(), stream=stream)))
            await asyncio.to_thread(wait_until, lambda: bool(server.calls), "nothing is asked")
            await asyncio.sleep(0.2)  # of a stream, the beginning is sent meanwhile
            request.cancel()
            with pytest.raises(asyncio.CancelledError):
                await request

    asyncio.run(main())
    wait_until(lambda: server.calls[0].end is not None, "the server goes on for a client that has left")
    [call] = server.calls
    assert call.cancelled
