"""Run a simulation with many simulated models in parallel processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import active_children, get_context

from rank_k.errors import RankKError
from rank_k.models.simulated import Grades, Noise
from rank_k.simulation.replay import SimulationTotals, simulate
from rank_k.strategies.base import Strategy
from rank_k.types import Run

MIN_QUERIES_FOR_PROCESSES = 2_000
"""The minimum number of rankings, over all simulated models and strategies, for which parallel processes are used."""


@dataclass(frozen=True, slots=True)
class Simulation:
    """Strategies to be compared on the queries of one run.

    Args:
        run: The candidates of each query.
        grades: The relevance judgments, from which the simulated models rank. Judged queries that are missing from the
            run score 0.
        make_strategies: Returns the strategies by name. It is called in every process and must be picklable.
        noise: The noise of the simulated models.
        depth: The number of candidates to rerank. Other candidates follow in their order.
    """

    run: Run
    grades: Grades
    make_strategies: Callable[[], Mapping[str, Strategy]]
    noise: Noise
    depth: int = 100

    def simulate(self, seed: int) -> dict[str, SimulationTotals]:
        """Return the totals of each strategy with the simulated model of `seed`."""
        cells = simulate({"": self.run}, self.grades, self.make_strategies(), {"": self.noise}, seed, self.depth)
        return {cell.strategy: totals for cell, totals in cells.items()}


def simulate_judges(
    simulation: Simulation, judges: int, on_judge: Callable[[int], object] = lambda done: None
) -> dict[str, SimulationTotals]:
    """Return the totals of each strategy over the simulated models with seeds 0 to `judges` - 1.

    Large simulations use one process per core. All processes have ended when this function returns or raises an error,
    also after Ctrl-C.

    Args:
        simulation: The strategies and the queries.
        judges: The number of simulated models.
        on_judge: Called after each simulated model with the number of simulated models that are finished.

    Raises:
        RankKError: If a process dies.
    """
    processes = min(os.cpu_count() or 1, judges)
    rankings = judges * len(simulation.grades) * len(simulation.make_strategies())
    if processes == 1 or rankings < MIN_QUERIES_FOR_PROCESSES:
        return _sum_totals(map(simulation.simulate, range(judges)), on_judge)
    other_children = active_children()
    threads = os.environ.get("OPENBLAS_NUM_THREADS", "1")  # every core has a process already
    pool = ProcessPoolExecutor(processes, get_context("spawn"), os.putenv, ("OPENBLAS_NUM_THREADS", threads))
    try:
        # The processes inherit the blocked SIGINT: only this process reacts to Ctrl-C, and ends them.
        signal_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            results = pool.map(simulation.simulate, range(judges))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, signal_mask)
        return _sum_totals(results, on_judge)
    except BrokenProcessPool as error:
        raise RankKError("a process of the simulation died", "check that there is enough memory") from error
    except BaseException:
        for process in active_children():
            if process not in other_children:
                process.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _sum_totals(
    results: Iterable[Mapping[str, SimulationTotals]], on_judge: Callable[[int], object]
) -> dict[str, SimulationTotals]:
    """Return the totals of each strategy over all simulated models of `results`."""
    totals: dict[str, SimulationTotals] = {}
    for done, result in enumerate(results, 1):
        for name, judge_totals in result.items():
            totals.setdefault(name, SimulationTotals()).update(judge_totals)
        on_judge(done)
    return totals
