"""The arithmetic of benchmarks/strategies.py, on collections of a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.strategies import NOISES, RUNS, print_table, simulated

from rank_k.simulation.replay import Cell, RoundSizes, SimulationTotals


def test_simulated_uses_one_judge_per_seed(tmp_path: Path) -> None:
    for name, runs in RUNS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "qrels.trec").write_text("".join(f"q 0 d{i} {i % 3}\n" for i in range(40)))
        for run in runs:
            (tmp_path / name / run).write_text("".join(f"q Q0 d{i} {i} {-i} t\n" for i in range(40)))
    folder = tmp_path / "cranfield"
    totals = simulated((folder, 0), ["sliding", "paper", "blocks"])
    totals_by_name = {(cell.noise, cell.strategy): cell_totals for (_, cell), cell_totals in totals.items()}
    for noise in NOISES:
        assert totals_by_name[noise, "sliding"] == totals_by_name[noise, "paper"]
        assert (totals_by_name[noise, "blocks"].calls, totals_by_name[noise, "sliding"].calls) == (4, 3)
        assert totals_by_name[noise, "sliding"].passages == 60
    assert all(totals[cell] == cell_totals for cell, cell_totals in simulated((folder, 0), ["blocks"]).items())
    assert any(totals[cell] != cell_totals for cell, cell_totals in simulated((folder, 1), ["blocks"]).items())


@pytest.mark.parametrize(
    ("blocks", "calls", "claims_hold"),
    [((0.6, 0.5), 7, True), ((0.5, 0.4), 7, False), ((0.5, 0.5), 7, False), ((0.6, 0.5), 8, False)],
    ids=["better", "worse", "no better", "better, but asks too often"],
)
def test_print_table_checks_the_claims_about_blocks(blocks: tuple[float, float], calls: int, claims_hold: bool) -> None:
    rounds = (RoundSizes((20,) * (calls - 2), calls), RoundSizes((20, 20), 2))
    values = {"sliding": (0.5, 0.5), "blocks": blocks}
    totals = {
        ("c", Cell("run", "weak", name)): SimulationTotals({"a": [first], "b": [second]}, [[rounds, rounds]])
        for name, (first, second) in values.items()
    }
    assert print_table(totals, ["sliding", "blocks"]) is claims_hold
