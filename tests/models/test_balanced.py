"""One model on several servers: balance, failing and returning servers, servers that do not fit together."""

from __future__ import annotations

import asyncio
import itertools
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from rank_k import Reranker
from rank_k.errors import ConnectionFailed, InputError, ServerError, ServerOverloaded
from rank_k.models.balanced import LONGEST_PAUSE, BalancedModel, ServerState
from rank_k.models.http import HttpModel
from rank_k.models.retry import RetryPolicy
from rank_k.types import Message, OnChunk, Request, Response
from tests.conftest import StartLoopback
from tests.fakes.model_server.marked_passages import make_dataset
from tests.fakes.model_server.request_log import RecordedRequest
from tests.fakes.model_server.running import FakeModelServer
from tests.paths import ROOT
from tests.support.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.integration

DATA = make_dataset(16, 30, strict=True)
QUERIES = {query.query_id: query for query in DATA.queries}
QUICK = RetryPolicy(first=0.05, longest=0.5)


def is_perfect(rankings: dict[str, tuple[str, ...]]) -> bool:
    return all(rankings[query_id][:10] == tuple(DATA.perfect(query_id)[:10]) for query_id in DATA.run)


@contextmanager
def child_server(port: int = 0, **plan: Any) -> Iterator[tuple[FakeModelServer, subprocess.Popen[str]]]:
    """Run a fake server in a process that can be killed."""
    command = [sys.executable, "-m", "tests.fakes.model_server", "--port", str(port)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as child:
        try:
            assert child.stdout is not None
            server = FakeModelServer(child.stdout.readline().strip(), child.pid)
            server.change(**plan)
            yield server, child
        finally:
            child.kill()


def test_balanced_model_divides_the_calls_evenly(loopback: StartLoopback) -> None:
    servers = [loopback(first_token=0.02) for _ in range(3)]
    with Reranker("oracle", server=",".join(server.url for server in servers)) as reranker:
        assert reranker.options.concurrency == 48
        rankings = {
            result.query_id: result.ranking.doc_ids for result in reranker.rerank(DATA.run, QUERIES, DATA.passages)
        }
        calls = [len(server.calls) for server in servers]
        assert is_perfect(rankings)
        assert sum(calls) == reranker.stats.new_calls
        assert min(calls) >= sum(calls) / 6


def test_balanced_model_survives_a_server_that_is_killed_and_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No window is left in input order, and no finished call is sent again."""
    monkeypatch.setattr("rank_k.models.balanced.FIRST_PAUSE", 0.1)
    plan: dict[str, Any] = {"first_token": 0.2, "per_token": 0.0001}
    finished_calls: list[RecordedRequest] = []
    with ExitStack() as stack:
        stable, _ = stack.enter_context(child_server(**plan))
        first, child = stack.enter_context(child_server(**plan))
        port = int(first.url.split(":")[2].split("/")[0])
        restarted: list[FakeModelServer] = []
        results = itertools.count(1)

        def kill_and_restart(*_: object) -> None:
            number = next(results)
            if number == 6:
                finished_calls.extend(call for call in first.calls if call.end is not None and not call.cancelled)
                child.kill()
                child.wait(PATIENCE)
            elif number == 12:
                restarted.append(stack.enter_context(child_server(port, **plan))[0])

        with Reranker("oracle", server=f"{stable.url},{first.url}", retries=QUICK, concurrency=4) as reranker:
            results_of_run = reranker.rerank(DATA.run, QUERIES, DATA.passages, on_result=kill_and_restart)
            rankings = {result.query_id: result.ranking.doc_ids for result in results_of_run}
        assert is_perfect(rankings)
        assert reranker.stats.unranked_windows == 0
        assert finished_calls
        assert restarted[0].calls, "the restarted server is used again"
        calls = [*stable.calls, *finished_calls, *restarted[0].calls]
        windows = Counter(call.window for call in calls if not call.cancelled)
        assert max(windows.values()) == 1, "no finished call is repeated"


def test_balanced_model_uses_a_server_that_starts_later(loopback: StartLoopback) -> None:
    with child_server() as (late, child):
        port = int(late.url.split(":")[2].split("/")[0])
        child.kill()
        child.wait(PATIENCE)
        with Reranker("oracle", server=f"{loopback().url},{late.url}", retries=QUICK) as reranker:
            assert reranker.rank("q", [DATA.passages[c.doc_id].text for c in DATA.run["Q00"]]).finished
            with child_server(port) as (server, _):

                def reaches_it() -> bool:
                    reranker.rank(
                        "q", [DATA.passages[c.doc_id].text for c in DATA.run["Q01"]] + [str(time.monotonic())]
                    )
                    return len(server.calls) > 0

                wait_until(reaches_it, "the server is never used")


def test_balanced_model_rejects_servers_that_differ(loopback: StartLoopback) -> None:
    first = loopback()
    cases: list[tuple[dict[str, Any], str]] = [({"model": "other"}, "model"), ({"owned_by": "llamacpp"}, "server type")]
    for plan, difference in cases:
        second = loopback(**plan)
        with (
            Reranker(None, server=f"{first.url},{second.url}") as reranker,
            pytest.raises(InputError, match=rf"http.*/v1 and http.*/v1 differ in their {difference}: "),
        ):
            reranker.prepare()


def test_balanced_model_raises_connection_failed_without_any_server() -> None:
    with (
        Reranker("m", server="http://127.0.0.1:9/v1,http://127.0.0.1:10/v1") as reranker,
        pytest.raises(ConnectionFailed),
    ):
        reranker.prepare()


class StubModel(HttpModel):
    """Fails with `errors` one after the other, then responds."""

    def __init__(self, url: str, *errors: Exception) -> None:
        super().__init__(url, "m", server_type="plain")
        self.errors = list(errors)
        self.calls = 0

    async def prepare(self) -> None:
        pass

    async def complete(self, request: Request, on_chunk: OnChunk | None = None) -> Response:
        self.calls += 1
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return Response(self.url)


REQUEST = Request((Message("user", "q"),), 10)


def test_balanced_model_sends_a_failed_request_to_another_server_at_once() -> None:
    failing, working = StubModel("http://a/v1", ServerError("broken")), StubModel("http://b/v1")
    model = BalancedModel([failing, working])

    async def run() -> list[str]:
        await model.prepare()
        return [(await model.complete(REQUEST)).text for _ in range(3)]

    assert asyncio.run(run()) == ["http://b/v1"] * 3
    assert (failing.calls, working.calls) == (1, 3), "the failing server is paused"


def test_balanced_model_raises_errors_that_are_not_the_servers_fault() -> None:
    failing, working = StubModel("http://a/v1", InputError("no")), StubModel("http://b/v1")
    model = BalancedModel([failing, working])
    with pytest.raises(InputError):
        asyncio.run(model.complete(REQUEST))
    assert working.calls == 0


def test_server_state_halves_its_limit_when_overloaded_and_raises_it_again() -> None:
    async def make() -> ServerState:
        return ServerState(StubModel("http://a/v1"), in_flight=16)

    state = asyncio.run(make())
    assert state.is_available(time.monotonic())
    state.count_failure(ServerOverloaded("busy", retry_after=None))
    assert state.limit == 8
    assert not state.is_available(time.monotonic() + 1), "16 requests are in flight"
    state.in_flight = 7
    assert state.is_available(time.monotonic() + 1)
    for _ in range(100):
        state.count_success()
    assert 15 < state.limit < 17
    assert state.failures == 0


def test_server_state_pauses_longer_after_each_failure() -> None:
    async def make() -> ServerState:
        return ServerState(StubModel("http://a/v1"))

    state = asyncio.run(make())
    pauses = []
    for _ in range(10):
        state.paused_until = 0.0
        before = time.monotonic()
        state.count_failure(ServerError("broken"))
        pauses.append(round(state.paused_until - before))
    assert pauses == [1, 2, 4, 8, 16, 32, *[round(LONGEST_PAUSE)] * 4]
