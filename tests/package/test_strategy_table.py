"""docs/how-to/strategies.md: its table is made again, its example is run.

python -m tests.package.test_strategy_table    writes the table anew
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest

from rank_k.strategies import PRESETS, STRATEGIES, make_strategy
from rank_k.strategies.base import Strategy
from rank_k.strategies.testing import check_strategy
from tests.support.driving import rank_by_grade, run_strategy

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "strategies.md"
LENGTHS = (10, 20, 55, 100, 1000)
BEGIN, END = "<!-- table: python -m tests.package.test_strategy_table -->\n", "<!-- end -->\n"


def cost_table() -> str:
    lines = ["| n | " + " | ".join(map(str, LENGTHS)) + " |", "|---" * (1 + len(LENGTHS)) + "|"]
    for name in STRATEGIES:
        costs = [mean_cost(make_strategy(name), length) for length in LENGTHS]
        for number, unit in enumerate(("calls", "rounds", "passages")):
            lines.append(f"| `{name}` {unit} | " + " | ".join(_format_number(row[number]) for row in costs) + " |")
    return "\n".join(lines) + "\n"


def mean_cost(strategy: Strategy, length: int) -> tuple[float, float, float]:
    """Mean calls, rounds and passages of a query."""
    costs = []
    for seed in range(5):
        _, rounds = run_strategy(strategy, length, rank_by_grade(Random(seed).sample(range(length), length)), seed)
        windows = [window for round_ in rounds for window in round_.windows]
        costs.append((len(windows), len(rounds), sum(len(window.doc_ids) for window in windows)))
    calls, round_count, passages = (fmean(column) for column in zip(*costs, strict=True))
    return calls, round_count, passages


def _format_number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _read_examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_strategy_table_equals_the_strategies() -> None:
    table = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert table.strip() == cost_table().strip(), "write it anew: python -m tests.package.test_strategy_table"


def test_strategies_page_lists_every_preset() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in (*STRATEGIES, *PRESETS) if f"| `{name}` |" not in page]


@pytest.fixture
def example() -> dict[str, Any]:
    namespace: dict[str, Any] = {"__name__": "halving"}
    exec(compile(_read_examples()[0], "docs/how-to/strategies.md", "exec", dont_inherit=True), namespace)
    return namespace


def test_example_strategy_passes_the_conformance_test(example: dict[str, Any]) -> None:
    exec(_read_examples()[1], example)
    rounds = check_strategy(example["Halving"](), 100, Random(0))
    assert [len(round_.windows) for round_ in rounds] == [5, 3, 2, 1]


def test_example_strategy_ranks_the_best_first(example: dict[str, Any]) -> None:
    grades = Random(1).sample(range(100), 100)
    ranking, _ = run_strategy(example["Halving"](), 100, rank_by_grade(grades))
    assert grades[int(ranking.doc_ids[0][1:])] == 99


def test_example_strategy_is_importable_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "halving.py").write_text(_read_examples()[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    strategy = make_strategy("halving:Halving", window=7)
    assert {len(w.doc_ids) for round_ in check_strategy(strategy, 49, Random(0)) for w in round_.windows} <= set(
        range(2, 8)
    )


if __name__ == "__main__":
    text_before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(text_before + BEGIN + cost_table() + END + rest.partition(END)[2], encoding="utf-8")
