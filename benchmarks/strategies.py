"""Quality and cost of strategies before a simulated judge, on real runs and judgments; and how long a fit takes.

    python -m benchmarks.strategies --data ../shared/data --seeds 20
    python -m benchmarks.strategies --seeds 200 --strategies sliding,blocks,fast,thorough,topdown

Every seed is another judge; all strategies meet the same ones. The first strategy is the baseline: differences are
paired by query, averaged over seeds, and their standard error is that over queries. nDCG@10 has linear gains and
an ideal from all judgments. Ctrl-C ends it with the table of the seeds that were done; with `--keep FILE` the same
command goes on from there. The exit status is 1 if `blocks` is not better on average, surely worse by half a point in
some cell, or asks more than 7 times or in more than 2 rounds about some query.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import pickle
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import lru_cache, partial
from pathlib import Path
from random import Random
from statistics import fmean, median

from rank_k.data.trec import read_qrels, read_run
from rank_k.models.simulated import PRESETS, Grades
from rank_k.simulation.replay import Cell, Mean, SimulationTotals, difference, simulate
from rank_k.strategies import PRESETS as PLANS
from rank_k.strategies import make_strategy
from rank_k.strategies.base import Strategy
from rank_k.strategies.bradley_terry import fit_strengths
from rank_k.types import Run, Window, WindowRanking, WindowResult

RUNS = {
    "trec-dl19": ("run.bm25.trec", "run.anserini-bm25-condensed100.trec", "run.splade-pp-ed.textonly.trec"),
    "cranfield": ("run.bm25.trec",),
}
NOISES = ("strong", "weak")
MAX_LOSS = -0.5
"""Points of nDCG@10: no cell's interval may lie below this as a whole."""

MAX_CALLS, MAX_ROUNDS = 7, 2
"""Of `blocks` for any query: lists are of 100 candidates at most."""

CellTotals = dict[tuple[str, Cell], SimulationTotals]
"""By collection and cell."""


def strategy_of(name: str) -> Strategy:
    return make_strategy(**PLANS[name]) if name in PLANS else make_strategy(name)


@lru_cache
def _collection(folder: Path, queries: int | None) -> tuple[Grades, dict[str, Run]]:
    grades = dict(itertools.islice(read_qrels(folder / "qrels.trec").items(), queries))
    return grades, {run: read_run(folder / run) for run in RUNS[folder.name]}


def simulated(task: tuple[Path, int], strategies: Sequence[str], queries: int | None = None) -> CellTotals:
    """All cells of one collection before the judges of one seed."""
    folder, seed = task
    grades, runs = _collection(folder, queries)
    plans = {name: strategy_of(name) for name in strategies}
    totals = simulate(runs, grades, plans, {name: PRESETS[name] for name in NOISES}, seed)
    return {(folder.name, cell): cell_totals for cell, cell_totals in totals.items()}


def simulate_all(
    data: Path,
    seeds: int,
    strategies: Sequence[str],
    processes: int,
    queries: int | None = None,
    part_file: Path | None = None,
) -> CellTotals:
    """Cells over all seeds; over those that were done, where it is interrupted. `kept`: a file to go on from."""
    tasks = [(data / name, seed) for seed in range(seeds) for name in RUNS]
    simulate_task = partial(simulated, strategies=strategies, queries=queries)
    totals: CellTotals = {}
    with contextlib.suppress(KeyboardInterrupt), contextlib.ExitStack() as stack:
        parts = (
            [] if part_file is None else list(itertools.islice(_read_parts(part_file, strategies, queries), len(tasks)))
        )
        file = None if part_file is None else stack.enter_context(part_file.open("ab"))
        for number, part in enumerate(
            itertools.chain(parts, _map_tasks(simulate_task, tasks[len(parts) :], processes))
        ):
            if file is not None and number >= len(parts):
                pickle.dump((strategies, queries, part), file)
                file.flush()
            for cell, cell_totals in part.items():
                totals.setdefault(cell, SimulationTotals()).update(cell_totals)
    return totals


def _read_parts(part_file: Path, strategies: Sequence[str], queries: int | None) -> Iterator[CellTotals]:
    """What an earlier run wrote; half a part at its end is cut off."""
    if not part_file.exists():
        return
    with part_file.open("r+b") as file:
        end = 0
        while True:
            try:
                *settings, part = pickle.load(file)
            except (EOFError, pickle.UnpicklingError):
                file.truncate(end)
                return
            if settings != [strategies, queries]:
                raise SystemExit(f"{part_file} is of other strategies or queries: {settings}")
            end = file.tell()
            yield part


def _map_tasks(
    simulate_task: partial[CellTotals], tasks: Sequence[tuple[Path, int]], processes: int
) -> Iterator[CellTotals]:
    if processes == 1:
        yield from map(simulate_task, tasks)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(simulate_task, tasks)


def print_table(totals: CellTotals, strategies: Sequence[str]) -> bool:
    """Returns whether `blocks`, where it was run, keeps what is said of it."""
    print(
        f"{'collection, run, noise':58} {'strategy':10} nDCG@10  diff (se)     95 % interval    calls passages rounds"
    )
    claims_hold = True
    differences: dict[str, list[Mean]] = {name: [] for name in strategies[1:]}
    for (collection, cell), cell_totals in sorted(totals.items(), key=lambda item: (item[0][0], item[0][1][:2])):
        if cell.strategy == "blocks" and (cell_totals.most[0] > MAX_CALLS or cell_totals.most[1] > MAX_ROUNDS):
            claims_hold = False
        cost = f"{cell_totals.calls:6.2f} {cell_totals.passages:8.1f} {cell_totals.rounds:6.2f}"
        difference_text = " " * 32
        if cell.strategy != strategies[0]:
            paired = difference(cell_totals, totals[collection, cell._replace(strategy=strategies[0])])
            differences[cell.strategy].append(paired)
            low, high = paired.interval
            difference_text = (
                f"{100 * paired.mean:+6.2f} ({100 * paired.error:.2f})  {100 * low:+6.2f} to {100 * high:+6.2f}"
            )
        quality = 100 * cell_totals.quality.mean
        label = f"{collection} {cell.run} {cell.noise}"
        print(f"{label:58} {cell.strategy:10} {quality:7.2f}  {difference_text:32} {cost}")
    for name, cell_differences in differences.items():
        mean = 100 * fmean(paired.mean for paired in cell_differences)
        worst = 100 * min(paired.interval[1] for paired in cell_differences)
        print(f"{name}: mean difference over cells {mean:+.2f}; the lowest upper end of an interval {worst:+.2f}")
        if name == "blocks":
            claims_hold = claims_hold and mean > 0 and worst >= MAX_LOSS
    return claims_hold


def fit_seconds(length: int, window: int = 20, repeats: int = 20) -> float:
    """Median time of a fit with probabilities at the end of the default plan."""
    random = Random(length)
    ids = tuple(f"d{i}" for i in range(length))
    count = -(-length // window)
    windows = [ids[start::count] for start in range(count)] + [ids[:window], ids[window // 2 : window + window // 2]]
    results = []
    for doc_ids in windows:
        tiers = tuple((doc_id,) for doc_id in random.sample(doc_ids, len(doc_ids)))
        results.append(WindowResult(Window(doc_ids, (1, length)), (WindowRanking(tiers, frozenset(doc_ids), True),)))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        fit_strengths(ids, results).top_k_probabilities()
        times.append(time.perf_counter() - start)
    return median(times)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.strategies")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the collections")
    parser.add_argument("--seeds", type=int, default=5, help="judges 0 to this; 200 for a published figure")
    parser.add_argument("--strategies", default="sliding,blocks", help="names and presets, the baseline first")
    parser.add_argument("--queries", type=int, help="only the first so many of a collection")
    parser.add_argument("--keep", type=Path, metavar="FILE", help="keep what is done, and go on from there")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(argv)
    missing = [str(options.data / name) for name in RUNS if not (options.data / name / "qrels.trec").is_file()]
    if missing:
        parser.error(f"there is no collection at {missing[0]}: name the folder that holds it with --data")
    strategies = options.strategies.split(",")
    start = time.perf_counter()
    totals = simulate_all(options.data, options.seeds, strategies, options.processes, options.queries, options.keep)
    claims_hold = print_table(totals, strategies)
    seed_count = min((len(cell_totals.plays) for cell_totals in totals.values()), default=0)
    print(f"{seed_count} seeds in {time.perf_counter() - start:.0f} s")
    for length in (100, 1000):
        print(f"fit of {length} passages: {1000 * fit_seconds(length):.1f} ms")
    return 0 if claims_hold else 1


if __name__ == "__main__":
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # for the processes to come: they share the cores already
    sys.exit(main())
