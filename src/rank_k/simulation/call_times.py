"""Estimate how long a run takes if calls take a given time, by a discrete-event simulation of the scheduler.

Queries start in input order, and a limited number of queries is open at a time. The next call is for the open query
with the most remaining windows, or for the earliest of several such queries. The next round of a query starts when its
current round is complete.
"""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, inf
from random import Random
from typing import NamedTuple

from rank_k.engine import OPEN_QUERIES_PER_SLOT
from rank_k.errors import InputError
from rank_k.simulation.replay import RoundSizes


class PendingRound(NamedTuple):
    """A round of a query: the seconds of each call, and the number of windows that remained before the round."""

    seconds: Sequence[float]
    remaining_windows: int = 0


class Call(NamedTuple):
    """A simulated call. `query` and `place` (in its round) count from 0; `start` and `end` are simulated seconds."""

    query: int
    place: int
    start: float
    end: float


def scheduled(queries: Iterable[Iterator[PendingRound]], concurrency: int) -> Iterator[Call]:
    """Yield the calls of all queries in the order of their start, with `concurrency` calls in flight.

    Args:
        queries: The rounds of each query. Queries and rounds are read lazily: when a call is yielded, the iterator of
            its query has yielded the round of this call and no later round.
        concurrency: The maximum number of calls in flight.
    """
    unopened = enumerate(queries)
    rounds: dict[int, Iterator[PendingRound]] = {}
    unfinished: dict[int, int] = {}  # calls of the current round, by query
    ready: list[tuple[int, int, int, float]] = []  # heap: -windows left, query, place, seconds
    running: list[tuple[float, int]] = []  # heap: end, query
    now = 0.0

    def start_next_round(query: int) -> None:
        pending = next((pending for pending in rounds[query] if pending.seconds), None)
        if pending is None:
            del rounds[query]
            return
        unfinished[query] = len(pending.seconds)
        for place, seconds in enumerate(pending.seconds):
            heapq.heappush(ready, (-pending.remaining_windows, query, place, seconds))

    while True:
        while len(rounds) < OPEN_QUERIES_PER_SLOT * concurrency and (opened := next(unopened, None)):
            query, query_rounds = opened
            rounds[query] = query_rounds
            start_next_round(query)
        while ready and len(running) < concurrency:
            _, query, place, seconds = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds, query))
            yield Call(query, place, now, now + seconds)
        if not running:
            return
        now = running[0][0]
        while running and running[0][0] == now:
            _, query = heapq.heappop(running)
            unfinished[query] -= 1
            if not unfinished[query]:
                start_next_round(query)


def makespan(queries: Iterable[Iterable[PendingRound]], concurrency: int) -> float:
    """Return the seconds from the start of the first call of `queries` to the end of the last."""
    return max((call.end for call in scheduled(map(iter, queries), concurrency)), default=0.0)


@dataclass(frozen=True, slots=True)
class CallTime:
    """The duration of a call. With w passages in the window, it is `fixed + per_passage * w` seconds on average.

    The duration of each call is multiplied by a lognormal random factor with mean 1.

    Attributes:
        fixed: Seconds that do not depend on the window.
        per_passage: Seconds per passage of the window (default: 0).
        spread: The standard deviation of the logarithm of the factor (default: 0).

    Raises:
        InputError: If a value is negative or not finite, or if all calls would take no time.
    """

    fixed: float
    per_passage: float = 0.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        are_valid = all(0 <= number < inf for number in (self.fixed, self.per_passage, self.spread))
        if not are_valid or self.fixed + self.per_passage <= 0:
            raise InputError(
                f"a call cannot take {self.fixed:g}+{self.per_passage:g}w seconds with a spread of {self.spread:g}",
                "give seconds above 0, such as 20+2.5w for a window of w passages, and a spread of at least 0",
            )

    @classmethod
    def parse(cls, text: str, spread: float = 0.0) -> CallTime:
        """Return the duration that `text` describes: "45", "20+2.5w" or "3w", with w for the number of passages.

        Raises:
            InputError: If `text` has a different form.
        """
        number = r"(\d+\.?\d*|\.\d+)"
        match = re.fullmatch(rf"\s*(?:{number}(?:\s*\+\s*{number}w)?|{number}w)\s*", text)
        if match is None:
            raise InputError(
                f"invalid duration of calls {text!r}",
                "give seconds: a number such as 45, or a formula such as 20+2.5w, where w is the number of passages in"
                " the window",
            )
        fixed, per_passage, passage_only = (float(part or 0) for part in match.groups())
        return cls(fixed, per_passage + passage_only, spread)

    def draw_seconds(self, rounds: Sequence[RoundSizes], seed: str) -> list[PendingRound]:
        """Return the rounds of a query with random call durations, which `seed` determines."""
        random = Random(seed)

        def draw(passages: int) -> float:
            factor = exp(random.gauss(-(self.spread**2) / 2, self.spread)) if self.spread else 1.0
            return (self.fixed + self.per_passage * passages) * factor

        return [PendingRound(list(map(draw, sizes)), remaining_windows) for sizes, remaining_windows in rounds]


class Seconds(NamedTuple):
    """Expected durations in seconds: for a query that runs alone (mean over queries), and for the whole run."""

    query: float
    run: float


def expected(plays: Sequence[Sequence[Sequence[RoundSizes]]], call_time: CallTime, concurrency: int) -> Seconds:
    """Return the expected durations.

    Args:
        plays: For each simulated model, the rounds of every query.
        call_time: The duration of calls.
        concurrency: The maximum number of calls in flight, at least 1.
    """
    query_seconds: list[float] = []
    run_seconds: list[float] = []
    for number, play in enumerate(plays):
        queries = [call_time.draw_seconds(rounds, f"{number}|{query}") for query, rounds in enumerate(play)]
        query_seconds.extend(makespan([rounds], concurrency) for rounds in queries)
        run_seconds.append(makespan(queries, concurrency))
    return Seconds(sum(query_seconds) / max(len(query_seconds), 1), sum(run_seconds) / max(len(run_seconds), 1))
