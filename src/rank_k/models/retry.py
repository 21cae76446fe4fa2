"""The one layer that asks again. Pure delays, and a loop over them."""

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
    """How often and how long. Delays double from `first` to `longest` seconds, each drawn between half and
    all of its bound; a server's Retry-After is believed up to `longest_wait` seconds.

    `overloaded`: tries where the server said it has too much to do; `broken`: where it failed or was gone. The two
    are counted apart: a connection that drops after a busy hour is a first failure.
    """

    overloaded: int = 12
    broken: int = 6
    first: float = 0.5
    longest: float = 30.0
    longest_wait: float = 300.0

    def delay(self, failures: int, error: ModelError, random: Random) -> float:
        """Seconds to wait after the `failures`-th failure of this kind."""
        if isinstance(error, ServerOverloaded) and error.retry_after is not None:
            # in this order a server's NaN is 0
            return min(self.longest_wait, max(0.0, error.retry_after)) + random.uniform(0, self.first)
        bound = min(self.first * 2 ** min(failures - 1, 30), self.longest)
        return random.uniform(bound / 2, bound)


async def call_with_retries(
    call: Callable[[], Awaitable[T]],
    policy: RetryPolicy,
    random: Random,
    on_retry: Callable[[ModelError, float], None] | None = None,
) -> T:
    """Return `call()`, repeated while it raises a retryable `ModelError`; then raise `RetriesExhausted`."""
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
