"""The lower bound: what a client without any overhead of its own would need for the same work.

A simulation by events, without a clock: calls take as long as the loopback server takes for the same windows,
everything else takes no time. The scheduling rule is that of the package: queries are opened in input order,
at most four per slot at once; a free slot takes the window whose query has most windows left, the earlier
query where several have; a query's next round is ready when its last one is answered in full.

    python -m benchmarks.ideal --queries 40 --passages 100 --slots 16
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple
from zlib import crc32

from tests.loopback import Dataset, latency, make_queries, oracle, peak_concurrency

from rank_k.records import Order, Outcome, Ranking, Window
from rank_k.strategies import STRATEGIES, make
from rank_k.strategies.protocol import Steps

OPEN_PER_SLOT = 4


class Call(NamedTuple):
    """`query` counts from 0 in input order; times are simulated seconds."""

    query: int
    window: Window
    start: float
    end: float


class Simulated(NamedTuple):
    """`calls` by time of their start, `rankings` in input order."""

    calls: tuple[Call, ...]
    rankings: tuple[Ranking, ...]

    @property
    def makespan(self) -> float:
        """Seconds from the start of the first call to the end of the last."""
        return max((call.end for call in self.calls), default=0.0)

    @property
    def busy(self) -> float:
        """Seconds of all calls together."""
        return sum(call.end - call.start for call in self.calls)

    @property
    def peak(self) -> int:
        """How many calls ran at once at most."""
        return peak_concurrency((call.start, call.end) for call in self.calls)


def simulate(
    queries: Iterable[Steps],
    slots: int,
    seconds: Callable[[int, Window], float],
    judge: Callable[[int, Window], Order],
) -> Simulated:
    """Run all strategies over `slots` slots.

    `queries` are drawn lazily, as they are opened. `seconds` and `judge` are told the number of the query and
    the window: how long that call takes, and what it answers.
    """
    waiting = enumerate(queries)
    steps: dict[int, Steps] = {}
    outcomes: dict[int, list[Outcome | None]] = {}  # of the round that a query is in
    rankings: dict[int, Ranking] = {}
    ready: list[tuple[int, int, int, Window]] = []  # heap: -windows left, query, place in its round, window
    running: list[tuple[float, int, int, Window]] = []  # heap: end, query, place in its round, window
    calls: list[Call] = []
    now = 0.0

    def advance(query: int, answered: list[Outcome] | None) -> None:
        try:
            step = next(steps[query]) if answered is None else steps[query].send(answered)
            while not step.windows:
                step = steps[query].send([])
        except StopIteration as finished:
            rankings[query] = finished.value
            del steps[query]
            return
        outcomes[query] = [None] * len(step.windows)
        for place, window in enumerate(step.windows):
            heapq.heappush(ready, (-step.windows_left, query, place, window))

    def open_queries() -> None:
        while len(steps) < OPEN_PER_SLOT * slots:
            entry = next(waiting, None)
            if entry is None:
                return
            query, steps[query] = entry[0], entry[1]
            advance(query, None)

    open_queries()
    while ready or running:
        while ready and len(running) < slots:
            _, query, place, window = heapq.heappop(ready)
            end = now + seconds(query, window)
            heapq.heappush(running, (end, query, place, window))
            calls.append(Call(query, window, now, end))
        now = running[0][0]
        while running and running[0][0] == now:
            _, query, place, window = heapq.heappop(running)
            outcomes[query][place] = Outcome(window, (judge(query, window),))
            answered = [outcome for outcome in outcomes[query] if outcome is not None]
            if len(answered) == len(outcomes[query]):
                advance(query, answered)
        open_queries()
    return Simulated(tuple(calls), tuple(rankings[query] for query in sorted(rankings)))


def simulate_dataset(
    dataset: Dataset,
    slots: int,
    strategy: str = "sliding",
    window: int = 20,
    stride: int = 10,
    first_token: float = 0.2,
    per_token: float = 0.002,
) -> Simulated:
    """All queries of `dataset`, judged by the oracle, at the latencies of such a loopback server."""
    plan = make(strategy, window=window, stride=stride)
    ids = [query.query_id for query in dataset.queries]

    def marks(query: int, shown: Window) -> tuple[str, ...]:
        return dataset.marks(ids[query], shown.doc_ids)

    def judge(query: int, shown: Window) -> Order:
        tiers = tuple(tuple(shown.doc_ids[i - 1] for i in tier) for tier in oracle(marks(query, shown)))
        return Order(tiers, frozenset(shown.doc_ids), True)

    return simulate(
        (plan(dataset.run[query_id], crc32(query_id.encode())) for query_id in ids),  # the engine's seed
        slots,
        lambda query, shown: latency(marks(query, shown), first_token, per_token),
        judge,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ideal")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="sliding")
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--first-token", type=float, default=0.2, help="seconds")
    parser.add_argument("--per-token", type=float, default=0.002, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    dataset = make_queries(options.queries, options.passages, options.seed)
    shape = (options.strategy, options.window, options.stride, options.first_token, options.per_token)
    print("slots  calls  peak  latency in all, s  makespan, s")
    for slots in options.slots:
        done = simulate_dataset(dataset, slots, *shape)
        print(f"{slots:5}  {len(done.calls):5}  {done.peak:4}  {done.busy:17.2f}  {done.makespan:11.2f}")


if __name__ == "__main__":
    main()
