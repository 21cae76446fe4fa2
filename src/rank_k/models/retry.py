"""Retry failed requests. No other module implements retries."""

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
    """The maximum number of attempts, and the delay between two attempts.

    The delay is drawn uniformly between half of an upper bound and this bound. The bound doubles with each failure.

    Attributes:
        overloaded: The number of failures because of overload after which a request is not repeated.
        broken: The number of other failures (the server fails or cannot be reached) after which it is not repeated. The
            two kinds are counted separately: a connection that drops after an hour of overload is a first failure.
        first: The upper bound of the delay after the first failure, in seconds.
        longest: The maximum of the upper bound, in seconds.
        longest_wait: The maximum delay after a response with Retry-After, in seconds. A longer Retry-After is shortened
            to this delay.
    """

    overloaded: int = 12
    broken: int = 6
    first: float = 0.5
    longest: float = 30.0
    longest_wait: float = 300.0

    def delay(self, failures: int, error: ModelError, random: Random) -> float:
        """Return the seconds to wait after a failure. `failures`: the number of failures of this kind so far."""
        if isinstance(error, ServerOverloaded) and error.retry_after is not None:
            # With the arguments in this order, NaN becomes 0.
            return min(self.longest_wait, max(0.0, error.retry_after)) + random.uniform(0, self.first)
        bound = min(self.first * 2 ** min(failures - 1, 30), self.longest)
        return random.uniform(bound / 2, bound)


async def call_with_retries(
    call: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    random: Random,
    on_retry: Callable[[ModelError, float], None] | None = None,
) -> T:
    """Return the result of `call`. Repeat the call while it raises a retryable `ModelError`.

    Args:
        call: Sends the request.
        policy: The maximum number of attempts and the delays.
        random: The source of randomness for the delays.
        on_retry: Called before each retry with the error and the seconds to wait.

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
