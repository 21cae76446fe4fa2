"""Quality and cost of strategies before a simulated judge, on real runs and judgments; and how long a fit takes.

    python -m benchmarks.strategies --data ../shared/data --seeds 20
    python -m benchmarks.strategies --seeds 200 --strategies sliding,blocks,fast,thorough,topdown

Every seed is another judge; all strategies meet the same ones. The first strategy is the baseline: differences are
paired by query, averaged over seeds, and their standard error is that over queries. nDCG@10 has linear gains and
an ideal from all judgments. The exit status is 1 if `blocks` is not better on average, or surely worse by half a
point in some cell.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import sqrt
from pathlib import Path
from random import Random
from statistics import fmean, median, stdev
from typing import NamedTuple
from zlib import crc32

from benchmarks.calibrate_noise import ndcg_at_10
from rank_k.answer import parse_answer
from rank_k.data.files import read_qrels, read_run
from rank_k.models.base import Request, Subject
from rank_k.models.simulated import Grades, SimulatedJudge
from rank_k.records import Candidate, Order, Outcome, Window
from rank_k.strategies import PRESETS, make
from rank_k.strategies.pairwise import fit
from rank_k.strategies.protocol import Strategy

RUNS = {
    "trec-dl19": ("run.bm25.trec", "run.anserini-bm25-condensed100.trec", "run.splade-pp-ed.textonly.trec"),
    "cranfield": ("run.bm25.trec",),
}
NOISES = ("strong", "weak")
SURELY_WORSE = -0.5
"""Points of nDCG@10: no cell's interval may lie below this as a whole."""


class Cell(NamedTuple):
    collection: str
    run: str
    noise: str
    strategy: str


@dataclass
class Sums:
    """Over seeds, by query: nDCG@10; and over seeds and queries: cost."""

    ndcg: dict[str, list[float]] = field(default_factory=dict)
    asked: int = 0
    calls: int = 0
    passages: int = 0
    rounds: int = 0

    def add(self, query_id: str, ndcg: float, rounds: Sequence[Sequence[Window]]) -> None:
        self.ndcg.setdefault(query_id, []).append(ndcg)
        self.asked += 1
        self.calls += sum(map(len, rounds))
        self.passages += sum(len(window.doc_ids) for windows in rounds for window in windows)
        self.rounds += len(rounds)

    def update(self, other: Sums) -> None:
        for query_id, values in other.ndcg.items():
            self.ndcg.setdefault(query_id, []).extend(values)
        self.asked += other.asked
        self.calls += other.calls
        self.passages += other.passages
        self.rounds += other.rounds

    def means(self) -> dict[str, float]:
        return {query_id: fmean(values) for query_id, values in self.ndcg.items()}


def strategy_of(name: str) -> Strategy:
    return make(**PRESETS[name]) if name in PRESETS else make(name)


def answered(judge: SimulatedJudge, query_id: str, window: Window) -> Order:
    """The judge's reply, read as any model's is: malformed ones too."""
    ids = window.doc_ids
    asked = judge.ask(Request((), 1, think=False, subject=Subject(query_id, ids)))
    try:
        asked.send(None)  # it waits for nothing, so that no event loop is needed
    except StopIteration as stop:
        answer = parse_answer(stop.value.text, len(ids), finish_reason=stop.value.finish_reason)
    tiers = tuple(tuple(ids[i - 1] for i in tier) for tier in answer.tiers)
    return Order(tiers, frozenset(ids[i - 1] for i in answer.placed), answer.ranked)


@lru_cache
def _collection(folder: Path) -> tuple[Grades, dict[str, dict[str, tuple[Candidate, ...]]]]:
    return read_qrels(folder / "qrels.trec"), {run: read_run(folder / run) for run in RUNS[folder.name]}


def simulate(task: tuple[Path, int], strategies: Sequence[str], queries: int | None = None) -> dict[Cell, Sums]:
    """All cells of one collection before the judges of one seed."""
    folder, seed = task
    grades, runs = _collection(folder)
    found: dict[Cell, Sums] = {}
    judges = {noise: SimulatedJudge(grades, noise, seed=seed) for noise in NOISES}
    plans = {name: strategy_of(name) for name in strategies}
    # query by query: the judges remember the errors of the last few thousand pairs of passages
    for query_id in itertools.islice(grades, queries):
        for (run, lists), noise, name in itertools.product(runs.items(), NOISES, strategies):
            candidates = lists.get(query_id, ())
            ids, rounds = _asked(plans[name], candidates, judges[noise], query_id)
            value = ndcg_at_10(ids, dict(grades[query_id]))
            found.setdefault(Cell(folder.name, run, noise, name), Sums()).add(query_id, value, rounds)
    return found


def _asked(
    plan: Strategy, candidates: Sequence[Candidate], judge: SimulatedJudge, query_id: str
) -> tuple[tuple[str, ...], list[tuple[Window, ...]]]:
    steps = plan(candidates, crc32(query_id.encode("utf-8", "surrogateescape")))  # the engine's seed
    rounds: list[tuple[Window, ...]] = []
    try:
        step = next(steps)
        while True:
            rounds.append(step.windows)
            step = steps.send([Outcome(window, (answered(judge, query_id, window),)) for window in step.windows])
    except StopIteration as stop:
        return stop.value.doc_ids, rounds


def simulate_all(
    data: Path, seeds: int, strategies: Sequence[str], processes: int, queries: int | None = None
) -> dict[Cell, Sums]:
    tasks = [(data / name, seed) for seed in range(seeds) for name in RUNS]
    found: dict[Cell, Sums] = {}
    for part in _mapped(partial(simulate, strategies=strategies, queries=queries), tasks, processes):
        for cell, sums in part.items():
            found.setdefault(cell, Sums()).update(sums)
    return found


def _mapped(
    one: partial[dict[Cell, Sums]], tasks: Sequence[tuple[Path, int]], processes: int
) -> Iterator[dict[Cell, Sums]]:
    if processes == 1:
        yield from map(one, tasks)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(one, tasks)


class Difference(NamedTuple):
    """In points. `error`: the standard error over queries of the paired differences."""

    mean: float
    error: float

    @property
    def interval(self) -> tuple[float, float]:
        return self.mean - 1.96 * self.error, self.mean + 1.96 * self.error


def difference(one: Sums, baseline: Sums) -> Difference:
    ours, theirs = one.means(), baseline.means()
    by_query = [100 * (ours[query_id] - theirs[query_id]) for query_id in ours]
    error = stdev(by_query) / sqrt(len(by_query)) if len(by_query) > 1 else float("nan")
    return Difference(fmean(by_query), error)


def print_table(found: Mapping[Cell, Sums], strategies: Sequence[str]) -> bool:
    """Returns whether `blocks`, where it was run, keeps what is said of it."""
    print(
        f"{'collection, run, noise':58} {'strategy':10} nDCG@10  diff (se)     95 % interval    calls passages rounds"
    )
    kept = True
    differences: dict[str, list[Difference]] = {name: [] for name in strategies[1:]}
    for cell, sums in sorted(found.items(), key=lambda item: (item[0][:3], strategies.index(item[0].strategy))):
        cost = f"{sums.calls / sums.asked:6.2f} {sums.passages / sums.asked:8.1f} {sums.rounds / sums.asked:6.2f}"
        told = " " * 32
        if cell.strategy != strategies[0]:
            of = difference(sums, found[cell._replace(strategy=strategies[0])])
            differences[cell.strategy].append(of)
            low, high = of.interval
            told = f"{of.mean:+6.2f} ({of.error:.2f})  {low:+6.2f} to {high:+6.2f}"
        quality = 100 * fmean(sums.means().values())
        place = f"{cell.collection} {cell.run} {cell.noise}"
        print(f"{place:58} {cell.strategy:10} {quality:7.2f}  {told:32} {cost}")
    for name, of_cells in differences.items():
        mean = fmean(of.mean for of in of_cells)
        worst = min(of.interval[1] for of in of_cells)
        print(f"{name}: mean difference over cells {mean:+.2f}; the lowest upper end of an interval {worst:+.2f}")
        if name == "blocks":
            kept = mean > 0 and worst >= SURELY_WORSE
    return kept


def fit_seconds(length: int, window: int = 20, repeats: int = 20) -> float:
    """Median time of a fit with probabilities at the end of the default plan."""
    random = Random(length)
    ids = tuple(f"d{i}" for i in range(length))
    count = -(-length // window)
    shown = [ids[start::count] for start in range(count)] + [ids[:window], ids[window // 2 : window + window // 2]]
    outcomes = []
    for doc_ids in shown:
        order = tuple((doc_id,) for doc_id in random.sample(doc_ids, len(doc_ids)))
        outcomes.append(Outcome(Window(doc_ids, (1, length)), (Order(order, frozenset(doc_ids), True),)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fit(ids, outcomes).in_top()
        times.append(time.perf_counter() - start)
    return median(times)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the collections")
    parser.add_argument("--seeds", type=int, default=5, help="judges 0 to this; 200 for a published figure")
    parser.add_argument("--strategies", default="sliding,blocks", help="names and presets, the baseline first")
    parser.add_argument("--queries", type=int, help="only the first so many of a collection")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    missing = [str(options.data / name) for name in RUNS if not (options.data / name / "qrels.trec").is_file()]
    if missing:
        parser.error(f"there is no collection at {missing[0]}: name the folder that holds it with --data")
    strategies = options.strategies.split(",")
    start = time.perf_counter()
    found = simulate_all(options.data, options.seeds, strategies, options.processes, options.queries)
    kept = print_table(found, strategies)
    print(f"{options.seeds} seeds in {time.perf_counter() - start:.0f} s")
    for length in (100, 1000):
        print(f"fit of {length} passages: {1000 * fit_seconds(length):.1f} ms")
    return 0 if kept else 1


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for the processes to come: they share the cores already
    sys.exit(main())
