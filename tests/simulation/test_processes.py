"""Many judges in several processes, which end with the call that started them."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping

import pytest

from rank_k.errors import RankKError
from rank_k.models.simulated import PRESETS
from rank_k.simulation import processes
from rank_k.simulation.processes import Simulation, simulate_judges
from rank_k.strategies import make_strategy
from rank_k.strategies.base import Strategy
from rank_k.types import Candidate

pytestmark = pytest.mark.integration

GRADES = {f"q{n}": {f"d{i}": (i * 7 + n) % 3 for i in range(30)} for n in range(3)}
RUN = {query_id: [Candidate(doc_id, -i) for i, doc_id in enumerate(grades)] for query_id, grades in GRADES.items()}


def make_strategies() -> Mapping[str, Strategy]:
    return {name: make_strategy(name) for name in ("sliding", "single")}


def die_in_a_worker() -> Mapping[str, Strategy]:
    if multiprocessing.parent_process() is not None:
        os._exit(1)
    return make_strategies()


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "MIN_QUERIES_FOR_PROCESSES", 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


@pytest.mark.usefixtures("two_processes")
def test_simulate_judges_adds_up_the_judges_of_all_processes() -> None:
    simulation = Simulation(RUN, GRADES, make_strategies, PRESETS["weak"])
    done: list[int] = []
    totals = simulate_judges(simulation, 3, done.append)
    assert done == [1, 2, 3]
    assert list(totals) == ["sliding", "single"]
    by_seed = [simulation.simulate(seed) for seed in range(3)]
    for name, strategy_totals in totals.items():
        for query_id, values in strategy_totals.ndcg.items():
            assert values == [result[name].ndcg[query_id][0] for result in by_seed]
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("two_processes")
def test_simulate_judges_ends_its_processes_when_interrupted() -> None:
    def interrupt(done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate_judges(Simulation(RUN, GRADES, make_strategies, PRESETS["weak"]), 50, interrupt)
    assert multiprocessing.active_children() == []


@pytest.mark.usefixtures("two_processes")
def test_simulate_judges_reports_a_process_that_died() -> None:
    with pytest.raises(RankKError, match="enough memory"):
        simulate_judges(Simulation(RUN, GRADES, die_in_a_worker, PRESETS["weak"]), 3)
    assert multiprocessing.active_children() == []
