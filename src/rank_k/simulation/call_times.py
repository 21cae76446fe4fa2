"""How long it takes: one query alone, and all of them with a given concurrency, when calls take a given time.

An event simulation without a clock. The rule is the engine's: queries are opened in input order, a bounded number at
once; the next call is for the window whose query has most windows left, the earlier query where several have; a query's
next round is ready when its last one is answered in full.
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
    """A round as the scheduler sees it: the seconds of each of its calls, and how many windows were left."""

    seconds: Sequence[float]
    remaining_windows: int


class Call(NamedTuple):
    """`query` and `place` (in its round) count from 0; times are simulated seconds."""

    query: int
    place: int
    start: float
    end: float


def scheduled(queries: Iterable[Iterator[PendingRound]], concurrency: int) -> Iterator[Call]:
    """When each call is made, by time of their start.

    `queries` are drawn lazily, as they are opened, and so is a query's next round once the last one is over: while
    a call is yielded, its query is in the round that it belongs to.
    """
    unopened = enumerate(queries)
    rounds: dict[int, Iterator[PendingRound]] = {}
    unanswered: dict[int, int] = {}  # calls of the round that a query is in
    ready: list[tuple[int, int, int, float]] = []  # heap: -windows left, query, place, seconds
    running: list[tuple[float, int, int]] = []  # heap: end, query, place
    now = 0.0

    def advance(query: int) -> None:
        pending = next((pending for pending in rounds[query] if pending.seconds), None)
        if pending is None:
            del rounds[query]
            return
        unanswered[query] = len(pending.seconds)
        for place, seconds in enumerate(pending.seconds):
            heapq.heappush(ready, (-pending.remaining_windows, query, place, seconds))

    def open_queries() -> None:
        while len(rounds) < OPEN_QUERIES_PER_SLOT * concurrency:
            entry = next(unopened, None)
            if entry is None:
                return
            rounds[entry[0]] = entry[1]
            advance(entry[0])

    open_queries()
    while ready or running:
        while ready and len(running) < concurrency:
            _, query, place, seconds = heapq.heappop(ready)
            heapq.heappush(running, (now + seconds, query, place))
            yield Call(query, place, now, now + seconds)
        now = running[0][0]
        while running and running[0][0] == now:
            _, query, _ = heapq.heappop(running)
            unanswered[query] -= 1
            if not unanswered[query]:
                advance(query)
        open_queries()


def makespan(calls: Iterable[Call]) -> float:
    """Seconds from the start of the first call to the end of the last."""
    return max((call.end for call in calls), default=0.0)


@dataclass(frozen=True, slots=True)
class CallTime:
    """A call that shows w passages takes `fixed + per_passage * w` seconds on average.

    One call differs from another by a lognormal factor of mean 1, whose logarithm has the deviation `spread`.
    Raises `InputError` for times below zero, or that are zero for every call.
    """

    fixed: float
    per_passage: float = 0.0
    spread: float = 0.0

    def __post_init__(self) -> None:
        numbers = (self.fixed, self.per_passage, self.spread)
        if not all(0 <= number < inf for number in numbers) or self.fixed + self.per_passage <= 0:
            raise InputError(f"calls cannot take {self}", "give seconds above 0, such as 20+2.5w, and a spread from 0")

    def __str__(self) -> str:
        per_passage = f"{self.per_passage:g}w"
        return (
            f"{self.fixed:g}"
            if not self.per_passage
            else per_passage
            if not self.fixed
            else f"{self.fixed:g}+{per_passage}"
        )

    @classmethod
    def parse(cls, text: str, spread: float = 0.0) -> CallTime:
        """ "45": every call; "20+2.5w": 20 seconds and 2.5 for each of the w passages; "3w"."""
        number = r"(\d+\.?\d*|\.\d+)"
        match = re.fullmatch(rf"\s*(?:{number}(?:\s*\+\s*{number}w)?|{number}w)\s*", text)
        if match is None:
            raise InputError(f"{text!r} is no time of a call", "write seconds such as 45, or 20+2.5w (w: passages)")
        fixed, per_passage, passage_only = (float(part or 0) for part in match.groups())
        return cls(fixed, per_passage + passage_only, spread)

    def draw_seconds(self, passages: int, random: Random) -> float:
        """Seconds of one call."""
        mean = self.fixed + self.per_passage * passages
        return mean * exp(random.gauss(-(self.spread**2) / 2, self.spread)) if self.spread else mean


def draw_call_seconds(rounds: Sequence[RoundSizes], call_time: CallTime, seed: str) -> list[PendingRound]:
    """`rounds` of one query with the seconds that their calls take, the same whenever they are made."""
    random = Random(seed)
    return [
        PendingRound([call_time.draw_seconds(size, random) for size in sizes.sizes], sizes.remaining_windows)
        for sizes in rounds
    ]


class Seconds(NamedTuple):
    """What is to be expected. `query`: one query alone, the mean over queries; `run`: all queries together."""

    query: float
    run: float


def expected(plays: Sequence[Sequence[Sequence[RoundSizes]]], call_time: CallTime, concurrency: int) -> Seconds:
    """Return the seconds with `concurrency` calls in flight, the mean over `plays`: the rounds of every query."""
    if concurrency < 1:
        raise InputError(f"concurrency is {concurrency}", "give 1 or more")
    query_seconds: list[float] = []
    run_seconds: list[float] = []
    for number, play in enumerate(plays):
        queries = [draw_call_seconds(rounds, call_time, f"{number}|{query}") for query, rounds in enumerate(play)]
        query_seconds.extend(makespan(scheduled([iter(rounds)], concurrency)) for rounds in queries)
        run_seconds.append(makespan(scheduled(map(iter, queries), concurrency)))
    return Seconds(sum(query_seconds) / max(len(query_seconds), 1), sum(run_seconds) / max(len(run_seconds), 1))
