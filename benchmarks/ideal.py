"""The lower bound: what a client without any overhead of its own would need for the same work.

A simulation by events, without a clock: calls take as long as the loopback server takes for the same windows,
everything else takes no time. The scheduling rule is that of the package (`rank_k.simulation.call_times`).

    python -m benchmarks.ideal --queries 40 --passages 100 --concurrency 16
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple
from zlib import crc32

from tests.fakes.model_server.marked_passages import Dataset, make_dataset, oracle_tiers, response_latency
from tests.fakes.model_server.request_log import peak_concurrency

from rank_k.simulation.call_times import PendingRound, scheduled
from rank_k.strategies import STRATEGIES, make_strategy
from rank_k.strategies.base import StrategyGenerator
from rank_k.types import Ranking, Window, WindowRanking, WindowResult


class Call(NamedTuple):
    """`query` counts from 0 in input order; times are simulated seconds."""

    query: int
    window: Window
    start: float
    end: float


class SimulatedRun(NamedTuple):
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
    queries: Iterable[StrategyGenerator],
    concurrency: int,
    seconds: Callable[[int, Window], float],
    judge: Callable[[int, Window], WindowRanking],
) -> SimulatedRun:
    """Run all strategies with at most `concurrency` calls in flight.

    `queries` are drawn lazily, as they are opened. `seconds` and `judge` are told the number of the query and
    the window: how long that call takes, and what it answers.
    """
    rankings: dict[int, Ranking] = {}
    windows_of_query: dict[int, Sequence[Window]] = {}  # of the round that a query is in

    def rounds(query: int, generator: StrategyGenerator) -> Iterator[PendingRound]:
        try:
            round_ = next(generator)
            while True:
                windows_of_query[query] = round_.windows
                yield PendingRound([seconds(query, window) for window in round_.windows], round_.remaining_windows)
                round_ = generator.send([WindowResult(window, (judge(query, window),)) for window in round_.windows])
        except StopIteration as stop:
            rankings[query] = stop.value

    calls = tuple(
        Call(call.query, windows_of_query[call.query][call.place], call.start, call.end)
        for call in scheduled(itertools.starmap(rounds, enumerate(queries)), concurrency)
    )
    return SimulatedRun(calls, tuple(rankings[query] for query in sorted(rankings)))


def simulate_dataset(
    dataset: Dataset,
    concurrency: int,
    strategy: str = "sliding",
    window: int = 20,
    stride: int = 10,
    first_token: float = 0.2,
    per_token: float = 0.002,
) -> SimulatedRun:
    """All queries of `dataset`, judged by the oracle, at the latencies of such a loopback server."""
    plan = make_strategy(strategy, window=window, stride=stride)
    query_ids = [query.query_id for query in dataset.queries]

    def marks(query: int, shown_window: Window) -> tuple[str, ...]:
        return dataset.marks(query_ids[query], shown_window.doc_ids)

    def judge(query: int, shown_window: Window) -> WindowRanking:
        tiers = tuple(
            tuple(shown_window.doc_ids[i - 1] for i in tier) for tier in oracle_tiers(marks(query, shown_window))
        )
        return WindowRanking(tiers, frozenset(shown_window.doc_ids), True)

    return simulate(
        (plan(dataset.run[query_id], crc32(query_id.encode())) for query_id in query_ids),  # the engine's seed
        concurrency,
        lambda query, shown_window: response_latency(marks(query, shown_window), first_token, per_token),
        judge,
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ideal")
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--strategy", choices=sorted(STRATEGIES), default="sliding")
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--stride", type=int, default=10)
    parser.add_argument("--first-token", type=float, default=0.2, help="seconds")
    parser.add_argument("--per-token", type=float, default=0.002, help="seconds")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    dataset = make_dataset(options.queries, options.passages, options.seed)
    settings = (options.strategy, options.window, options.stride, options.first_token, options.per_token)
    print("concurrency  calls  peak  latency in all, s  makespan, s")
    for concurrency in options.concurrency:
        result = simulate_dataset(dataset, concurrency, *settings)
        print(f"{concurrency:11}  {len(result.calls):5}  {result.peak:4}  {result.busy:17.2f}  {result.makespan:11.2f}")


if __name__ == "__main__":
    main()
