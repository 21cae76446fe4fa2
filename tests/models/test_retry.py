"""What can be asked again is, for so long and no longer; what cannot ends at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rank_k.errors import (
    ConnectionFailed,
    ContextOverflow,
    ModelError,
    RequestRejected,
    RetriesExhausted,
    ServerError,
    ServerOverloaded,
)
from rank_k.models.retry import RetryPolicy, call_with_retries
from tests.support.waiting import PATIENCE, STUCK_SECONDS


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting takes no time; the seconds asked for are in the list."""
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return seconds


def failing(*errors: ModelError) -> Callable[[], Awaitable[str]]:
    """Raises one after another, then answers."""
    left = list(errors)

    async def call() -> str:
        if left:
            raise left.pop(0)
        return "answer"

    return call


def run(call: Callable[[], Awaitable[str]], retries: RetryPolicy = RetryPolicy()) -> str:
    return asyncio.run(call_with_retries(call, retries, Random(0)))


# --- delays ----------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(), st.floats(0.01, 5), st.floats(5, 100))
def test_delays_double_up_to_the_longest_and_are_drawn_from_their_upper_half(
    failures: int, seed: int, first: float, longest: float
) -> None:
    delay = RetryPolicy(first=first, longest=longest).delay(failures, ServerError("x"), Random(seed))
    bound = longest if failures > 20 else min(first * 2 ** (failures - 1), longest)
    assert bound / 2 <= delay <= bound


def test_delays_are_jittered() -> None:
    random = Random(0)
    delays = [RetryPolicy().delay(5, ServerError("x"), random) for _ in range(100)]
    assert len(set(delays)) > 90
    assert max(delays) > 1.5 * min(delays)


@given(st.floats(0, 1e9), st.integers())
def test_retry_after_is_honored_up_to_five_minutes(asked: float, seed: int) -> None:
    delay = RetryPolicy().delay(1, ServerOverloaded("busy", retry_after=asked), Random(seed))
    assert min(asked, 300) <= delay <= min(asked, 300) + RetryPolicy().first


@pytest.mark.parametrize("asked", [math.nan, math.inf, -math.inf, -5.0])
def test_a_retry_after_that_makes_no_sense_is_a_wait_that_does(asked: float) -> None:
    assert (
        0 <= RetryPolicy().delay(1, ServerOverloaded("busy", retry_after=asked), Random(0)) <= 300 + RetryPolicy().first
    )


def test_a_server_that_says_nothing_about_waiting_is_waited_for_as_usual() -> None:
    assert 1 <= RetryPolicy().delay(3, ServerOverloaded("busy"), Random(0)) <= 2


# --- asking again ----------------------------------------------------------------------------------


def test_an_answer_at_once_is_not_waited_for(slept: list[float]) -> None:
    assert run(failing()) == "answer"
    assert slept == []


@pytest.mark.parametrize("error", [ConnectionFailed("gone"), ServerOverloaded("busy"), ServerError("broken")])
def test_what_can_be_asked_again_is(slept: list[float], error: ModelError) -> None:
    assert run(failing(error, error, error)) == "answer"
    assert len(slept) == 3


@pytest.mark.parametrize(
    "error",
    [
        RequestRejected("no", status=401),
        ContextOverflow("long"),
        RetriesExhausted("done"),
        ModelError("what"),
        RequestRejected("404"),
    ],
)
def test_what_cannot_be_asked_again_ends_at_once(slept: list[float], error: ModelError) -> None:
    with pytest.raises(type(error)) as raised:
        run(failing(error))
    assert raised.value is error
    assert slept == []


def test_other_exceptions_are_none_of_its_business(slept: list[float]) -> None:
    async def call() -> str:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run(call)
    assert slept == []


@pytest.mark.parametrize(
    ("error", "tries"),
    [(ServerError("broken", "look"), 6), (ConnectionFailed("gone", "look"), 6), (ServerOverloaded("busy", "look"), 12)],
)
def test_retrying_has_an_end_that_says_why(slept: list[float], error: ModelError, tries: int) -> None:
    with pytest.raises(RetriesExhausted) as raised:
        run(failing(*[error] * 100))
    assert str(raised.value) == f"no answer after {tries} tries: {error.problem}; look"
    assert raised.value.__cause__ is error
    assert not raised.value.retryable
    assert len(slept) == tries - 1


def test_the_last_try_may_succeed(slept: list[float]) -> None:
    assert run(failing(*[ServerError("x")] * 5)) == "answer"
    assert run(failing(*[ServerOverloaded("x")] * 11)) == "answer"


def test_a_dropped_connection_after_many_refusals_is_a_first_failure(slept: list[float]) -> None:
    assert run(failing(*[ServerOverloaded("busy")] * 11, *[ServerError("x")] * 5)) == "answer"
    assert slept[11] <= RetryPolicy().first
    with pytest.raises(RetriesExhausted, match="after 17 tries"):
        run(failing(*[ServerOverloaded("busy")] * 11, *[ServerError("x")] * 6))


def test_six_times_429_costs_little(slept: list[float]) -> None:
    assert run(failing(*[ServerOverloaded("busy", retry_after=0)] * 6)) == "answer"
    assert sum(slept) <= 6 * RetryPolicy().first


def test_every_wait_is_told_before_it_begins(slept: list[float]) -> None:
    told: list[tuple[ModelError, float]] = []
    errors = [ServerError("one"), ServerOverloaded("two", retry_after=7)]

    def on_retry(error: ModelError, wait: float) -> None:
        assert len(slept) == len(told)
        told.append((error, wait))

    assert asyncio.run(call_with_retries(failing(*errors), RetryPolicy(), Random(0), on_retry)) == "answer"
    assert [error for error, _ in told] == errors
    assert [wait for _, wait in told] == slept
    assert told[1][1] >= 7


# --- cancelling ------------------------------------------------------------------------------------


def test_cancelling_ends_a_wait_at_once_and_asks_no_more() -> None:
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        raise ServerOverloaded("busy", retry_after=STUCK_SECONDS)

    async def cancelled_after(seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await call_with_retries(call, RetryPolicy(longest_wait=STUCK_SECONDS), Random(0))

    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(cancelled_after(0.5))
    assert time.monotonic() - begun < PATIENCE
    assert calls == 1


def test_cancelling_a_call_is_no_failure(slept: list[float]) -> None:
    async def call() -> str:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call_with_retries(call, RetryPolicy(), Random(0)))
    assert slept == []
