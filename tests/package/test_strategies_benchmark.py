"""The arithmetic of benchmarks/strategies.py, on collections of a few lines."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.strategies import NOISES, RUNS, print_table, simulated

from rank_k.simulation.replay import Cell, RoundSizes, SimulationTotals


def test_strategies_meet_the_same_judge_and_every_seed_another(tmp_path: Path) -> None:
    for name, runs in RUNS.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "qrels.trec").write_text("".join(f"q 0 d{i} {i % 3}\n" for i in range(40)))
        for run in runs:
            (tmp_path / name / run).write_text("".join(f"q Q0 d{i} {i} {-i} t\n" for i in range(40)))
    folder = tmp_path / "cranfield"
    found = simulated((folder, 0), ["sliding", "paper", "blocks"])
    by_name = {(cell.noise, cell.strategy): sums for (_, cell), sums in found.items()}
    for noise in NOISES:
        assert by_name[noise, "sliding"] == by_name[noise, "paper"]
        assert (by_name[noise, "blocks"].calls, by_name[noise, "sliding"].calls) == (4, 3)
        assert by_name[noise, "sliding"].passages == 60
    assert all(found[cell] == sums for cell, sums in simulated((folder, 0), ["blocks"]).items())
    assert any(found[cell] != sums for cell, sums in simulated((folder, 1), ["blocks"]).items())


@pytest.mark.parametrize(
    ("blocks", "calls", "kept"),
    [((0.6, 0.5), 7, True), ((0.5, 0.4), 7, False), ((0.5, 0.5), 7, False), ((0.6, 0.5), 8, False)],
    ids=["better", "worse", "no better", "better, but asks too often"],
)
def test_it_says_whether_what_is_said_of_blocks_holds(blocks: tuple[float, float], calls: int, kept: bool) -> None:
    rounds = (RoundSizes((20,) * (calls - 2), calls), RoundSizes((20, 20), 2))
    values = {"sliding": (0.5, 0.5), "blocks": blocks}
    found = {
        ("c", Cell("run", "weak", name)): SimulationTotals({"a": [one], "b": [other]}, [[rounds, rounds]])
        for name, (one, other) in values.items()
    }
    assert print_table(found, ["sliding", "blocks"]) is kept
