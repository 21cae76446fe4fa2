"""docs/strategies.md: its table is made again, its example is run.

python -m tests.package.test_strategy_table    writes the table anew
"""

from __future__ import annotations

import re
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import pytest

from rank_k.strategies import PRESETS, STRATEGIES, make
from rank_k.strategies.base import Strategy
from rank_k.strategies.testing import check_strategy
from tests.support.driving import by_grade, drive

PAGE = Path(__file__).parents[2] / "docs" / "strategies.md"
LENGTHS = (10, 20, 55, 100, 1000)
BEGIN, END = "<!-- table: python -m tests.package.test_strategy_table -->\n", "<!-- end -->\n"


def table() -> str:
    lines = ["| n | " + " | ".join(map(str, LENGTHS)) + " |", "|---" * (1 + len(LENGTHS)) + "|"]
    for name in STRATEGIES:
        costs = [cost(make(name), length) for length in LENGTHS]
        for number, what in enumerate(("calls", "rounds", "passages")):
            lines.append(f"| `{name}` {what} | " + " | ".join(_told(row[number]) for row in costs) + " |")
    return "\n".join(lines) + "\n"


def cost(strategy: Strategy, length: int) -> tuple[float, float, float]:
    """Mean calls, rounds and passages of a query."""
    found = []
    for seed in range(5):
        _, rounds = drive(strategy, length, by_grade(Random(seed).sample(range(length), length)), seed)
        windows = [window for step in rounds for window in step.windows]
        found.append((len(windows), len(rounds), sum(len(window.doc_ids) for window in windows)))
    calls, turns, passages = (fmean(column) for column in zip(*found, strict=True))
    return calls, turns, passages


def _told(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def _examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_the_table_is_what_the_strategies_do() -> None:
    written = PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]
    assert written.strip() == table().strip(), "write it anew: python -m tests.package.test_strategy_table"


def test_the_presets_are_all_on_the_page() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in (*STRATEGIES, *PRESETS) if f"| `{name}` |" not in page]


@pytest.fixture
def example() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "halving"}
    exec(compile(_examples()[0], "docs/strategies.md", "exec", dont_inherit=True), names)
    return names


def test_the_example_passes_its_own_test(example: dict[str, Any]) -> None:
    exec(_examples()[1], example)
    rounds = check_strategy(example["Halving"](), 100, Random(0))
    assert [len(step.windows) for step in rounds] == [5, 3, 2, 1]


def test_the_example_puts_the_best_first(example: dict[str, Any]) -> None:
    grades = Random(1).sample(range(100), 100)
    ranking, _ = drive(example["Halving"](), 100, by_grade(grades))
    assert grades[int(ranking.doc_ids[0][1:])] == 99


def test_the_example_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "halving.py").write_text(_examples()[0], encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    made = make("halving:Halving", window=7)
    assert {len(w.doc_ids) for step in check_strategy(made, 49, Random(0)) for w in step.windows} <= set(range(2, 8))


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(before + BEGIN + table() + END + rest.partition(END)[2], encoding="utf-8")
