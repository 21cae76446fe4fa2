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
def sleep_seconds(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waiting takes no time; the seconds asked for are in the list."""
    seconds: list[float] = []

    async def sleep(delay: float) -> None:
        seconds.append(delay)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return seconds


def fail_with(*errors: ModelError) -> Callable[[], Awaitable[str]]:
    """Raises one after another, then answers."""
    remaining = list(errors)

    async def call() -> str:
        if remaining:
            raise remaining.pop(0)
        return "answer"

    return call


def run_with_retries(call: Callable[[], Awaitable[str]], retries: RetryPolicy = RetryPolicy()) -> str:
    return asyncio.run(call_with_retries(call, retries, Random(0)))


# --- delays ----------------------------------------------------------------------------------------


@given(st.integers(1, 2000), st.integers(), st.floats(0.01, 5), st.floats(5, 100))
def test_delay_doubles_up_to_the_longest_with_jitter(failures: int, seed: int, first: float, longest: float) -> None:
    delay = RetryPolicy(first=first, longest=longest).delay(failures, ServerError("x"), Random(seed))
    bound = longest if failures > 20 else min(first * 2 ** (failures - 1), longest)
    assert bound / 2 <= delay <= bound


def test_delay_is_jittered() -> None:
    random = Random(0)
    delays = [RetryPolicy().delay(5, ServerError("x"), random) for _ in range(100)]
    assert len(set(delays)) > 90
    assert max(delays) > 1.5 * min(delays)


@given(st.floats(0, 1e9), st.integers())
def test_delay_honors_retry_after_up_to_five_minutes(retry_after: float, seed: int) -> None:
    delay = RetryPolicy().delay(1, ServerOverloaded("busy", retry_after=retry_after), Random(seed))
    assert min(retry_after, 300) <= delay <= min(retry_after, 300) + RetryPolicy().first


@pytest.mark.parametrize("retry_after", [math.nan, math.inf, -math.inf, -5.0])
def test_delay_bounds_invalid_retry_after(retry_after: float) -> None:
    assert (
        0
        <= RetryPolicy().delay(1, ServerOverloaded("busy", retry_after=retry_after), Random(0))
        <= 300 + RetryPolicy().first
    )


def test_delay_without_retry_after_is_exponential() -> None:
    assert 1 <= RetryPolicy().delay(3, ServerOverloaded("busy"), Random(0)) <= 2


# --- asking again ----------------------------------------------------------------------------------


def test_call_with_retries_returns_without_sleeping(sleep_seconds: list[float]) -> None:
    assert run_with_retries(fail_with()) == "answer"
    assert sleep_seconds == []


@pytest.mark.parametrize("error", [ConnectionFailed("gone"), ServerOverloaded("busy"), ServerError("broken")])
def test_call_with_retries_retries_transient_errors(sleep_seconds: list[float], error: ModelError) -> None:
    assert run_with_retries(fail_with(error, error, error)) == "answer"
    assert len(sleep_seconds) == 3


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
def test_call_with_retries_raises_permanent_errors_at_once(sleep_seconds: list[float], error: ModelError) -> None:
    with pytest.raises(type(error)) as error_info:
        run_with_retries(fail_with(error))
    assert error_info.value is error
    assert sleep_seconds == []


def test_call_with_retries_passes_other_exceptions_through(sleep_seconds: list[float]) -> None:
    async def call() -> str:
        raise KeyError("bug")

    with pytest.raises(KeyError):
        run_with_retries(call)
    assert sleep_seconds == []


@pytest.mark.parametrize(
    ("error", "tries"),
    [(ServerError("broken", "look"), 6), (ConnectionFailed("gone", "look"), 6), (ServerOverloaded("busy", "look"), 12)],
)
def test_call_with_retries_raises_retries_exhausted_with_the_cause(
    sleep_seconds: list[float], error: ModelError, tries: int
) -> None:
    with pytest.raises(RetriesExhausted) as error_info:
        run_with_retries(fail_with(*[error] * 100))
    assert str(error_info.value) == f"no answer after {tries} tries: {error.problem}; look"
    assert error_info.value.__cause__ is error
    assert not error_info.value.retryable
    assert len(sleep_seconds) == tries - 1


def test_call_with_retries_returns_on_the_last_attempt(sleep_seconds: list[float]) -> None:
    assert run_with_retries(fail_with(*[ServerError("x")] * 5)) == "answer"
    assert run_with_retries(fail_with(*[ServerOverloaded("x")] * 11)) == "answer"


def test_call_with_retries_counts_overload_and_failures_apart(sleep_seconds: list[float]) -> None:
    assert run_with_retries(fail_with(*[ServerOverloaded("busy")] * 11, *[ServerError("x")] * 5)) == "answer"
    assert sleep_seconds[11] <= RetryPolicy().first
    with pytest.raises(RetriesExhausted, match="after 17 tries"):
        run_with_retries(fail_with(*[ServerOverloaded("busy")] * 11, *[ServerError("x")] * 6))


def test_call_with_retries_waits_little_for_retry_after_zero(sleep_seconds: list[float]) -> None:
    assert run_with_retries(fail_with(*[ServerOverloaded("busy", retry_after=0)] * 6)) == "answer"
    assert sum(sleep_seconds) <= 6 * RetryPolicy().first


def test_call_with_retries_reports_every_wait_first(sleep_seconds: list[float]) -> None:
    reported: list[tuple[ModelError, float]] = []
    errors = [ServerError("one"), ServerOverloaded("two", retry_after=7)]

    def on_retry(error: ModelError, wait: float) -> None:
        assert len(sleep_seconds) == len(reported)
        reported.append((error, wait))

    assert asyncio.run(call_with_retries(fail_with(*errors), RetryPolicy(), Random(0), on_retry)) == "answer"
    assert [error for error, _ in reported] == errors
    assert [wait for _, wait in reported] == sleep_seconds
    assert reported[1][1] >= 7


# --- cancelling ------------------------------------------------------------------------------------


def test_call_with_retries_cancellation_ends_a_wait() -> None:
    calls = 0

    async def call() -> str:
        nonlocal calls
        calls += 1
        raise ServerOverloaded("busy", retry_after=STUCK_SECONDS)

    async def call_with_timeout(seconds: float) -> None:
        async with asyncio.timeout(seconds):
            await call_with_retries(call, RetryPolicy(longest_wait=STUCK_SECONDS), Random(0))

    started = time.monotonic()
    with pytest.raises(TimeoutError):
        asyncio.run(call_with_timeout(0.5))
    assert time.monotonic() - started < PATIENCE
    assert calls == 1


def test_call_with_retries_does_not_retry_cancelled_calls(sleep_seconds: list[float]) -> None:
    async def call() -> str:
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(call_with_retries(call, RetryPolicy(), Random(0)))
    assert sleep_seconds == []
