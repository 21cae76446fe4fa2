"""The loopback server does what its plan says, on time, and the simulation of the lower bound adds up."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from benchmarks.ideal import simulate, simulate_dataset

from rank_k.strategies.base import StrategyGenerator
from rank_k.types import Ranking, Round, Window, WindowRanking
from tests.conftest import StartLoopback
from tests.fakes.loopback import (
    QUIRKS,
    TRANSIENT,
    Loopback,
    Plan,
    latency,
    make_queries,
    oracle,
    peak_concurrency,
    relevance,
    reply_tokens,
    shown_marks,
    window_key,
)
from tests.paths import ROOT
from tests.support.waiting import PATIENCE, until

pytestmark = pytest.mark.integration

DATASET = make_queries(30, 100)
FIRST = DATASET.queries[0].query_id


def window_of(query_id: str = FIRST, start: int = 0, size: int = 20) -> list[str]:
    return [candidate.doc_id for candidate in DATASET.run[query_id][start : start + size]]


def prompt(doc_ids: list[str]) -> str:
    passages = "\n".join(f"[{i}] {DATASET.passages[doc_id].text}" for i, doc_id in enumerate(doc_ids, 1))
    return f"Rank these.\n[3] > [2] = [1]\n[1] > [2]\n\n{passages}\n\nQuery: which is best?"


def question(doc_ids: list[str], **more: Any) -> dict[str, Any]:
    body = {"model": "oracle", "messages": [{"role": "user", "content": prompt(doc_ids)}], "stream": True}
    return body | {"stream_options": {"include_usage": True}} | more


def marks_of(doc_ids: list[str]) -> tuple[str, ...]:
    return DATASET.marks(doc_ids[0].partition("-")[0], doc_ids)


def true_order(doc_ids: list[str]) -> str:
    return " > ".join(" = ".join(f"[{i}]" for i in tier) for tier in oracle(marks_of(doc_ids)))


@dataclass
class Heard:
    """What a client that forgives everything made of one reply."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    content: str = ""
    trace: str = ""
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    broken: int = 0
    pieces: int = 0
    contents: list[str | None] = field(default_factory=list)


def _hear(heard: Heard, message: dict[str, Any]) -> None:
    heard.contents.append(message.get("content"))
    heard.content += message.get("content") or ""
    heard.trace += message.get("reasoning") or message.get("reasoning_content") or ""
    heard.trace += "".join(detail["text"] for detail in message.get("reasoning_details") or [])


async def ask(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> Heard:
    async with session.post(f"{url}/chat/completions", json=body, allow_redirects=False) as response:
        heard = Heard(response.status, dict(response.headers))
        if response.content_type == "application/json":
            payload = json.loads(await response.read() or b"{}")
            heard.error, heard.usage = payload.get("error"), payload.get("usage")
            for choice in payload.get("choices", []):
                _hear(heard, choice["message"])
                heard.finish_reason = choice["finish_reason"]
            return heard
        try:
            async for line in response.content:
                if not line.startswith(b"data: ") or line.strip() == b"data: [DONE]":
                    heard.broken += line.startswith(b":")
                    continue
                try:
                    payload = json.loads(line[6:].decode())
                except ValueError:
                    heard.broken += 1
                    continue
                heard.pieces += 1
                heard.usage, heard.error = payload.get("usage"), payload.get("error")
                for choice in payload.get("choices", []):
                    _hear(heard, choice["delta"])
                    heard.finish_reason = choice["finish_reason"]
        except aiohttp.ClientError as error:
            heard.error = error
        return heard


@asynccontextmanager
async def client(**headers: str) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:
        yield session


def ask_once(server: Loopback, body: dict[str, Any], **headers: str) -> Heard:
    async def main() -> Heard:
        async with client(**headers) as session:
            return await ask(session, server.url, body)

    return asyncio.run(main())


# --- Marked passages and the oracle ----------------------------------------------------------------


def test_dataset_is_reproducible_and_its_perfect_order_follows_the_judgments() -> None:
    again = make_queries(30, 100)
    assert again == DATASET
    assert make_queries(30, 100, seed=1).run != DATASET.run
    for query in DATASET.queries:
        grades = DATASET.qrels[query.query_id]
        perfect = DATASET.perfect(query.query_id)
        assert sorted(perfect) == sorted(grades) == sorted(window_of(query.query_id, 0, 100))
        assert [grades[doc_id] for doc_id in perfect] == [3] * 2 + [2] * 4 + [1] * 8 + [0] * 86


def test_strict_dataset_has_one_perfect_order() -> None:
    strict = make_queries(2, 30, strict=True)
    assert sorted(strict.qrels["Q01"].values()) == list(range(30))
    assert all(len(tier) == 1 for tier in oracle(strict.marks("Q01", strict.qrels["Q01"])))


def test_passages_are_read_by_mark_and_examples_are_not_passages() -> None:
    doc_ids = window_of()
    user = {"role": "user", "content": prompt(doc_ids)}
    notes = {"role": "assistant", "content": "[1] is good\n[2] is bad"}
    assert shown_marks([user, notes, {"role": "user", "content": "[1] > [2]\nthe order, please"}]) == marks_of(doc_ids)
    assert shown_marks([{"role": "user", "content": "[1] no mark here\n[2] nor here"}]) == (
        "no mark here",
        "nor here",
    )
    assert shown_marks([{"role": "user", "content": "Hello"}]) == ()


def test_oracle_ties_equal_grades_and_orders_ungraded_marks_by_hash() -> None:
    assert oracle(["a-G1", "b-G3", "c-G1", "d-G0"]) == [[2], [1, 3], [4]]
    assert len(oracle([f"p{i}" for i in range(20)])) == 20
    assert 0 <= relevance("p1") < 1 <= relevance("p1-G1")


def test_lengths_of_replies_are_of_the_shape_promised() -> None:
    lengths = sorted(reply_tokens((f"m{i}", f"n{i}")) for i in range(4000))
    assert lengths[0] >= 100
    assert lengths[-1] <= 2000
    assert 415 < sum(lengths) / len(lengths) < 445
    assert 1.55 < lengths[int(len(lengths) * 0.8413)] / lengths[len(lengths) // 2] < 1.75  # exp(0.5) = 1.65
    assert reply_tokens(tuple(f"m{i}" for i in range(1500))) == 3020


# --- Replies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("quirk", QUIRKS)
def test_quirk_decides_where_the_trace_goes(loopback: StartLoopback, quirk: str, stream: bool) -> None:
    doc_ids = window_of()
    heard = ask_once(loopback(quirk=quirk, per_token=0.0001), question(doc_ids, stream=stream))
    assert heard.status == 200
    assert heard.finish_reason == "stop"
    before, close, after = heard.content.rpartition("</think>")
    assert after.strip() == true_order(doc_ids)
    assert bool(heard.trace) == quirk.startswith("reasoning")
    assert bool(close) == (quirk in ("inline", "missing_open"))
    assert before.startswith("<think>") == (quirk == "inline")
    if quirk != "none":
        mentioned = re.findall(r"\[(\d+)\] >", before + heard.trace)
        assert len(set(mentioned)) > 5
        assert mentioned != sorted(mentioned, key=int)
    assert heard.usage is not None
    assert heard.usage["prompt_tokens"] == len(prompt(doc_ids)) // 4
    answer_tokens = len(true_order(doc_ids).split())
    tokens = answer_tokens if quirk == "none" else reply_tokens(marks_of(doc_ids))
    assert heard.usage["completion_tokens"] == tokens
    assert heard.usage["completion_tokens_details"] == {"reasoning_tokens": tokens - answer_tokens}
    if stream:
        assert heard.pieces > 5 or quirk == "none"


def test_thinking_can_be_switched_off_by_the_request(loopback: StartLoopback) -> None:
    doc_ids = window_of()
    body = question(doc_ids, chat_template_kwargs={"enable_thinking": False})
    assert ask_once(loopback(), body).content == true_order(doc_ids)


def test_usage_in_a_stream_comes_only_where_asked_for(loopback: StartLoopback) -> None:
    assert ask_once(loopback(), question(window_of(), stream_options=None)).usage is None


def test_max_tokens_ends_the_reply(loopback: StartLoopback) -> None:
    heard = ask_once(loopback(), question(window_of(), max_tokens=7))
    assert heard.finish_reason == "length"
    assert heard.content == "<think>\n" + " ".join(heard.content.split()[1:]) + " "
    assert len(heard.content.split()) == 7


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("quirk", ["inline", "reasoning_content"])
def test_cut_thought_is_recovered_by_a_second_turn(loopback: StartLoopback, quirk: str, stream: bool) -> None:
    doc_ids = window_of()
    server = loopback(cut=1.0, quirk=quirk)
    body = question(doc_ids, stream=stream)
    heard = ask_once(server, body)
    assert heard.finish_reason == "length"
    assert "</think>" not in heard.content
    if quirk == "reasoning_content":
        assert heard.trace
        assert heard.contents[-1 if not stream else 1] is None
    notes = {"role": "assistant", "content": heard.content + heard.trace}
    body["messages"] += [notes, {"role": "user", "content": "Give the order now."}]
    heard = ask_once(server, body)
    assert (heard.finish_reason, heard.content) == ("stop", true_order(doc_ids))
    assert [call.n_messages for call in server.calls] == [1, 3]
    assert len({call.window for call in server.calls}) == 1


def test_prose_names_every_passage_in_the_true_order(loopback: StartLoopback) -> None:
    doc_ids = window_of()
    answer = ask_once(loopback(prose=1.0), question(doc_ids)).content.rpartition("</think>")[2].strip()
    said, _, listed = answer.partition(": ")
    assert said.startswith("Of the 20 passages, the 3 best")
    assert [int(i) for i in listed.split(", ")] == [i for tier in oracle(marks_of(doc_ids)) for i in tier]


def test_garbage_holds_no_order(loopback: StartLoopback) -> None:
    answer = ask_once(loopback(garbage=1.0), question(window_of())).content.rpartition("</think>")[2]
    assert answer.strip()
    assert not any(character.isdigit() for character in answer)


@pytest.mark.parametrize("quirk", ["inline", "reasoning"])
def test_ragged_chunks_change_nothing(loopback: StartLoopback, quirk: str) -> None:
    body = question(window_of())
    plain, ragged = (ask_once(loopback(quirk=quirk, ragged=on, per_token=0.0001), body) for on in (False, True))
    assert "naïve" in plain.content + plain.trace
    assert (plain.content, plain.trace, ragged.broken) == (ragged.content, ragged.trace, 0)


# --- Time ------------------------------------------------------------------------------------------


async def drift(step: float, seconds: float) -> float:
    """Return by how much waiting for `seconds` is late when it consists of waits of `step` seconds each."""
    start = time.monotonic()
    for _ in range(round(seconds / step)):
        await asyncio.sleep(step)
    return time.monotonic() - start - seconds


@pytest.mark.parametrize("stream", [True, False])
def test_latency_is_exact_and_does_not_drift(loopback: StartLoopback, stream: bool) -> None:
    doc_ids = window_of()
    server = loopback(first_token=0.1, per_token=0.004, flush=0.003)
    expected = latency(marks_of(doc_ids), 0.1, 0.004)
    drifts = []
    for _ in range(3):
        heard = ask_once(server, question(doc_ids, stream=stream))
        if stream:
            assert heard.pieces > 10  # it streamed: not all at the end
        drifts.append(asyncio.run(drift(0.003, expected - 0.1)))
    late = [(call.end or 0.0) - call.start - expected for call in server.calls]
    assert min(late) >= -0.005
    assert min(late) < min(drifts) / 2


def test_sixty_four_streams_at_once_stay_on_time(loopback: StartLoopback) -> None:
    """All are open at the same time, no answer takes as long as two, and each costs no more than one of a few does."""
    server = loopback(child=True, first_token=3.0, per_token=0.01, flush=0.02)
    windows = [window_of(query.query_id, start) for query in DATASET.queries[:22] for start in (0, 20, 40)][:64]
    child = psutil.Process(server.pid)

    async def ask_all(number: int) -> None:
        async with client() as session:
            await asyncio.gather(*(ask(session, server.url, question(window)) for window in windows[:number]))

    def cpu_seconds_of(number: int) -> float:
        server.forget()
        before = child.cpu_times()
        asyncio.run(ask_all(number))
        after = child.cpu_times()
        return after.user + after.system - before.user - before.system

    few, all_of_them = cpu_seconds_of(16), cpu_seconds_of(64)
    assert all_of_them / 64 < 3 * few / 16
    calls = server.calls
    assert {call.window: call.status for call in calls} == {window_key(marks_of(w)): 200 for w in windows}
    assert peak_concurrency((call.start, call.end or 0.0) for call in calls) == 64
    expected = {window_key(marks_of(w)): latency(marks_of(w), 3.0, 0.01) for w in windows}
    late = sorted((call.end or 0.0) - call.start - expected[call.window] for call in calls)
    assert late[0] >= -0.005
    assert late[-1] < min(expected.values())


def test_slow_start_keeps_the_line_open_with_a_comment(loopback: StartLoopback) -> None:
    server = loopback(slow_start=1.0, slow_seconds=0.2)
    heard = ask_once(server, question(window_of()))
    [call] = server.calls
    assert call.end is not None
    assert call.end - call.start >= 0.2
    assert heard.broken == 1  # the comment
    assert heard.finish_reason == "stop"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_is_noticed(loopback: StartLoopback, stream: bool) -> None:
    server = loopback(first_token=0.05, per_token=10.0)

    async def main() -> None:
        async with client() as session:
            asking = asyncio.create_task(ask(session, server.url, question(window_of(), stream=stream)))
            await asyncio.to_thread(until, lambda: bool(server.calls), "nothing is asked")
            await asyncio.sleep(0.2)  # of a stream, the beginning is sent meanwhile
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking

    asyncio.run(main())
    until(lambda: server.calls[0].end is not None, "the server goes on for a client that has left")
    [call] = server.calls
    assert call.cancelled


# --- Faults that pass ------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("fault", TRANSIENT)
def test_transient_fault_strikes_so_many_times_and_then_no_more(
    loopback: StartLoopback, fault: str, stream: bool
) -> None:
    doc_ids = window_of()
    plan: dict[str, Any] = {fault: (1.0, 2), "retry_after": "7"}
    server = loopback(**plan)
    heard = []
    for _ in range(3):
        try:
            heard.append(ask_once(server, question(doc_ids, stream=stream)))
        except aiohttp.ClientError as error:  # a connection dropped before the head of the reply
            heard.append(Heard(0, error=error))
    assert [call.fault for call in server.calls] == [fault, fault, ""]
    assert heard[2].content.rpartition("</think>")[2].strip() == true_order(doc_ids)
    assert (heard[2].broken, heard[2].error) == (0, None)
    for failed in heard[:2]:
        match fault:
            case "http_429":
                assert (failed.status, failed.headers["Retry-After"]) == (429, "7")
                assert failed.error == {"message": "rate limit: limit 20 per 1 min, try again in 3s"}
            case "http_500":
                assert (failed.status, failed.error["code"]) == (500, 500)
            case "drop":
                assert isinstance(failed.error, aiohttp.ClientError)
                assert failed.finish_reason is None
            case "error_in_stream":
                assert failed.error["code"] == 500
                assert failed.finish_reason is None
            case _ if stream:
                assert failed.broken == 1
                assert failed.content == heard[2].content  # what was not broken was said in full


def test_dropped_stream_ends_in_mid_thought(loopback: StartLoopback) -> None:
    heard = ask_once(loopback(drop=1.0, per_token=0.0001), question(window_of()))
    assert heard.content.startswith("<think>")
    assert "</think>" not in heard.content


def test_faults_hit_the_windows_that_the_seed_says_everywhere(loopback: StartLoopback) -> None:
    windows = [window_of(query.query_id, start) for query in DATASET.queries for start in range(0, 81, 10)]
    plans = [Plan().changed({"cut": 0.28, "http_429": "0.11:6", "seed": seed}) for seed in (0, 0, 1)]
    keys = [window_key(marks_of(window)) for window in windows]
    hit = [[key for key in keys if plan.strikes("cut", key)] for plan in plans]
    assert hit[0] == hit[1] != hit[2]
    assert 0.2 < len(hit[0]) / len(keys) < 0.36
    limited = [key for key in keys if plans[0].strikes("http_429", key)]
    assert 0.05 < len(limited) / len(keys) < 0.18
    for server in (loopback(cut=0.28), loopback(cut=0.28, child=True)):
        struck = [
            key
            for key, window in zip(keys[:25], windows, strict=False)
            if ask_once(server, question(window, stream=False)).finish_reason == "length"
        ]
        assert struck == hit[0][: len(struck)] != []


def test_faults_add_up(loopback: StartLoopback) -> None:
    doc_ids = window_of()
    server = loopback(http_429=(1.0, 2), http_500=1.0, drop=1.0, cut=1.0)
    for _ in range(5):
        heard = ask_once(server, question(doc_ids))
    assert [call.fault for call in server.calls] == ["http_429", "http_429", "http_500", "drop", ""]
    assert heard.finish_reason == "length"
    server.forget()
    assert server.calls == []
    assert ask_once(server, question(doc_ids)).status == 429


# --- Refusals --------------------------------------------------------------------------------------


def test_key_is_asked_for(loopback: StartLoopback) -> None:
    server = loopback(api_key="s3cret")
    assert ask_once(server, question(window_of())).status == 401
    assert ask_once(server, question(window_of()), Authorization="Bearer wrong").status == 401
    assert ask_once(server, question(window_of()), Authorization="Bearer s3cret").status == 200
    assert [call.authorization for call in server.calls] == ["", "Bearer wrong", "Bearer s3cret"]


def test_unknown_model_and_forced_refusal(loopback: StartLoopback) -> None:
    heard = ask_once(loopback(), question(window_of(), model="gpt-9"))
    assert (heard.status, heard.error["message"]) == (404, "The model `gpt-9` does not exist.")
    assert ask_once(loopback(refuse=403), question(window_of())).status == 403


def test_context_is_enforced_in_the_words_of_vllm(loopback: StartLoopback) -> None:
    doc_ids = window_of()
    size = len(prompt(doc_ids)) // 4
    server = loopback(max_model_len=size + 100)
    assert ask_once(server, question(doc_ids, max_tokens=100)).status == 200
    heard = ask_once(server, question(doc_ids, max_tokens=101))
    assert heard.status == 400
    assert heard.error["message"].endswith(
        f"is too large: 101. This model's maximum context length is {size + 100} tokens and your request has "
        f"{size} input tokens (101 > {size + 100} - {size})."
    )
    server.change(max_model_len=size)
    heard = ask_once(server, question(doc_ids, max_completion_tokens=50))
    assert heard.status == 400
    assert f"requested {size + 50} tokens ({size} in the messages, 50 in the completion)" in heard.error["message"]
    server.change(max_model_len=0)
    assert ask_once(server, question(doc_ids, max_tokens=10**9)).status == 200


def test_redirect_points_elsewhere(loopback: StartLoopback) -> None:
    other = loopback()
    server = loopback(redirect=other.url)
    heard = ask_once(server, question(window_of()))
    assert heard.status == 307
    assert heard.headers["Location"] == f"{other.url}/chat/completions"
    assert other.requests == []


def test_malformed_requests_are_refused_and_the_server_lives(loopback: StartLoopback) -> None:
    server = loopback()
    assert ask_once(server, {"model": "oracle"}).status == 400

    async def raw(data: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))
        writer.write(data)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer

    for data in (b"nonsense\r\n\r\n", b"POST /v1/chat/completions HTTP/1.1\r\nContent-Length: 2\r\n\r\n{]"):
        assert asyncio.run(raw(data)).startswith(b"HTTP/1.1 400 ")
    assert ask_once(server, question(window_of())).status == 200
    with pytest.raises(ValueError, match="no such setting"):
        server.change(cutt=1.0)


# --- The rest of the surface -----------------------------------------------------------------------


def test_models_tokenize_and_health(loopback: StartLoopback) -> None:
    server = loopback(model="rank-k", owned_by="llamacpp", max_model_len=8192)

    async def main() -> tuple[Any, Any, int]:
        async with client() as session:
            async with session.get(f"{server.url}/models") as response:
                models = await response.json()
            root = server.url.removesuffix("/v1")
            async with session.post(f"{root}/tokenize", json={"model": "rank-k", "prompt": "x" * 43}) as response:
                tokens = await response.json()
            async with session.get(f"{root}/health") as response:
                return models, tokens, response.status

    models, tokens, health = asyncio.run(main())
    [card] = models["data"]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("rank-k", "llamacpp", 8192)
    assert (tokens["count"], len(tokens["tokens"]), tokens["max_model_len"]) == (11, 11, 8192)
    assert health == 200
    assert [seen.path for seen in server.requests] == ["/v1/models", "/tokenize", "/health"]
    assert server.calls == []


def test_connections_are_kept_and_bodies_kept_where_wanted(loopback: StartLoopback) -> None:
    server = loopback(bodies=True)

    async def main() -> None:
        async with client() as session:
            for start in (0, 20, 40):
                await ask(session, server.url, question(window_of(FIRST, start)))

    asyncio.run(main())
    assert server.connections == 2  # the client's, and the one this was asked over
    calls = server.calls
    assert [call.window for call in calls] == [window_key(marks_of(window_of(FIRST, s))) for s in (0, 20, 40)]
    assert all(a.end is not None and a.end <= b.start for a, b in itertools.pairwise(calls))
    assert calls[0].body == question(window_of())


def test_child_announces_its_address_and_ends_with_its_input() -> None:
    command = [
        sys.executable,
        "-m",
        "tests.fakes.loopback",
        "--http-429",
        "1:3",
        "--retry-after",
        "0.5",
        "--bodies",
    ]
    root = ROOT
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        server = Loopback(child.stdout.readline().strip())
        heard = ask_once(server, question(window_of()))
        assert (heard.status, heard.headers["Retry-After"]) == (429, "0.5")
        assert server.calls[0].body is not None
        child.stdin.close()
        assert child.wait(timeout=PATIENCE) == 0


# --- The fixtures ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def users_own_settings() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK_K_API_KEY", "the user's own")
        patch.setenv("OPENAI_API_KEY", "the user's own")
        yield


def test_tests_do_not_see_the_users_settings(isolated_environment: Path) -> None:
    assert "RANK_K_API_KEY" not in os.environ
    assert "OPENAI_API_KEY" not in os.environ
    assert Path.home() == isolated_environment


# --- The lower bound -------------------------------------------------------------------------------


def test_peak_concurrency_counts_overlaps_only() -> None:
    assert peak_concurrency([]) == 0
    assert peak_concurrency([(0.0, 1.0), (1.0, 2.0), (0.5, 1.5), (0.6, 0.7)]) == 3
    assert peak_concurrency([(0.0, 1.0), (1.0, 2.0)]) == 1


def _steps(name: str, rounds: list[int], log: list[str]) -> StrategyGenerator:
    """A query of so many windows in each round, that says when it begins and checks what it is sent."""
    log.append(name)
    left = sum(rounds)
    for number, width in enumerate(rounds):
        windows = tuple(Window((name, f"{number}.{place}"), (1, 1)) for place in range(width))
        outcomes = yield Round(windows, Ranking.of([name]), left)
        assert tuple(outcome.window for outcome in outcomes) == windows
        left -= width
    return Ranking.of([name])


def _simulate(queries: dict[str, list[int]], slots: int, seconds: dict[str, float]) -> Any:
    log: list[str] = []
    made = (_steps(name, rounds, log) for name, rounds in queries.items())
    done = simulate(
        made, slots, lambda _, window: seconds[window.doc_ids[0]], lambda _, window: WindowRanking.unranked(window)
    )
    return done, [(call.window.doc_ids[0], call.start, call.end) for call in done.calls]


def test_longest_queue_is_served_first_then_the_earlier_query() -> None:
    done, calls = _simulate({"a": [1], "b": [1, 1], "c": [1]}, 1, {"a": 1.0, "b": 2.0, "c": 4.0})
    assert calls == [("b", 0.0, 2.0), ("a", 2.0, 3.0), ("b", 3.0, 5.0), ("c", 5.0, 9.0)]
    assert (done.makespan, done.busy, done.peak) == (9.0, 9.0, 1)
    assert [ranking.doc_ids for ranking in done.rankings] == [("a",), ("b",), ("c",)]


def test_next_round_waits_for_the_whole_round() -> None:
    done, calls = _simulate({"a": [3, 1]}, 2, {"a": 1.0})
    assert calls == [("a", 0.0, 1.0), ("a", 0.0, 1.0), ("a", 1.0, 2.0), ("a", 2.0, 3.0)]
    assert (done.makespan, done.peak) == (3.0, 2)


def test_only_four_queries_a_slot_are_open_and_in_input_order() -> None:
    # The sixth query has most windows, but is not open before one of the first four is done.
    queries = {name: [1] for name in "abcde"} | {"f": [1] * 9}
    _, calls = _simulate(queries, 1, dict.fromkeys("abcdef", 1.0))
    assert "".join(name for name, _, _ in calls) == "ab" + "f" * 8 + "cdef"


def test_queries_without_any_window_are_done_at_once() -> None:
    done, calls = _simulate({"a": [], "b": [0, 1], "c": []}, 4, {"b": 1.0})
    assert [name for name, _, _ in calls] == ["b"]
    assert len(done.rankings) == 3
    assert _simulate({}, 4, {})[0].makespan == 0.0


def test_simulated_sliding_finds_the_best_top_and_meets_the_packing_bounds() -> None:
    for slots in (4, 64):
        done = simulate_dataset(DATASET, slots)
        assert len(done.calls) == 30 * 9
        chains: dict[int, float] = {}
        for call in done.calls:
            chains[call.query] = chains.get(call.query, 0.0) + call.end - call.start
        bound = max(done.busy / slots, max(chains.values()))
        assert bound <= done.makespan < bound * 1.1
        assert done.peak == min(slots, 30)
        for query, ranking in zip(DATASET.queries, done.rankings, strict=True):
            grades = DATASET.qrels[query.query_id]
            assert [grades[doc_id] for doc_id in ranking.doc_ids[:10]] == [3, 3, 2, 2, 2, 2, 1, 1, 1, 1]


def test_simulation_agrees_with_the_server(loopback: StartLoopback) -> None:
    """The windows that the simulation asked, asked for real one after the other, take as long as it says."""
    one = DATASET._replace(queries=DATASET.queries[:1])
    done = simulate_dataset(one, 1, first_token=0.02, per_token=0.0002)
    server = loopback(first_token=0.02, per_token=0.0002)

    async def main() -> None:
        async with client() as session:
            for call in done.calls:
                await ask(session, server.url, question(list(call.window.doc_ids)))

    asyncio.run(main())
    calls = server.calls
    assert len(calls) == 9
    real = (calls[-1].end or 0.0) - calls[0].start
    assert done.makespan - 0.005 <= real < done.makespan * 1.3 + 0.1
