"""Retries: how often a failed request is repeated, and how long to wait before. No other module retries requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import TypeVar

from rank_k.errors import ModelError, RetriesExhausted, ServerOverloaded

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a request is tried, and how long to wait between two attempts.

    The maximum delay doubles with each failure; the delay is drawn between half of it and all of it.

    Attributes:
        overloaded: The maximum number of attempts at an overloaded server.
        broken: The maximum number of attempts at a server that fails or cannot be reached. The two kinds of failure are
            counted separately: a connection that drops after an hour of overload is a first failure.
        first: The maximum delay after the first failure, in seconds.
        longest: The maximum delay, in seconds.
        longest_wait: The maximum delay that a server may request with Retry-After, in seconds.
    """

    overloaded: int = 12
    broken: int = 6
    first: float = 0.5
    longest: float = 30.0
    longest_wait: float = 300.0

    def delay(self, failures: int, error: ModelError, random: Random) -> float:
        """Return the seconds to wait after the `failures`-th failure of this kind."""
        if isinstance(error, ServerOverloaded) and error.retry_after is not None:
            # In this order of arguments, NaN becomes 0.
            return min(self.longest_wait, max(0.0, error.retry_after)) + random.uniform(0, self.first)
        bound = min(self.first * 2 ** min(failures - 1, 30), self.longest)
        return random.uniform(bound / 2, bound)


async def call_with_retries(
    call: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    random: Random,
    on_retry: Callable[[ModelError, float], None] | None = None,
) -> T:
    """Return the result of `call`, which is repeated while it raises a retryable `ModelError`.

    Args:
        call: The request.
        policy: How often it is repeated.
        random: Draws the delays.
        on_retry: Called with the error and the seconds to wait before each retry.

    Raises:
        RetriesExhausted: After the last attempt.
        ModelError: If the error is not retryable.
    """
    failures: Counter[bool] = Counter()
    while True:
        try:
            return await call()
        except ModelError as error:
            if not error.retryable:
                raise
            is_overload = isinstance(error, ServerOverloaded)
            failures[is_overload] += 1
            if failures[is_overload] >= (policy.overloaded if is_overload else policy.broken):
                raise RetriesExhausted(
                    f"no answer after {failures.total()} tries: {error.problem}", error.remedy
                ) from error
            wait = policy.delay(failures[is_overload], error, random)
            if on_retry is not None:
                on_retry(error, wait)
        await asyncio.sleep(wait)
